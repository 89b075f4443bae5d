//! Traffic from outside, by name: HAProxy, the agent that tells it where to lead, and a guest.

use std::time::Duration;

use crate::machine::Machine;

#[test]
fn a_page_comes_by_name_through_port_80_of_the_host() {
    let machine = Machine::new("ingress", &["[ingress]", "enable = true"]);
    // Where the world reaches it.
    machine.run(&["ip", "address", "add", "192.0.2.7/32", "dev", "lo"]).ok();
    let ann = machine.tenant("ann", "one");
    let (_, namespace) = ann.plant();
    let host = format!("web.{namespace}.seed.example");
    let fetch = |host: &str| {
        let to = format!("{host}:80:192.0.2.7");
        let url = format!("http://{host}/");
        machine.run(&["curl", "-sS", "-m", "10", "-w", " %{http_code}", "--resolve", &to, &url]).all().replace('\n', "")
    };
    let page = || machine.wait("the page", Duration::from_secs(30), || (fetch(&host) == "Hello from Seed 200").then_some(()));
    page();
    assert_eq!(fetch("nobody.seed.example"), "There is nothing by this name here. 404");
    let own = fetch("seed.example");
    assert!(!own.contains("There is nothing by this name") && !own.ends_with(" 503"), "the door for HTTP answers: {own}");

    // HAProxy is killed: another takes its place, and leads to the same.
    let unit = "seed-ingress.service";
    let first = machine.main_pid(unit);
    machine.run(&["systemctl", "kill", "-s", "KILL", unit]).ok();
    page();
    let second = machine.main_pid(unit);
    assert_ne!(first, second);
    // The agent is killed: nothing is lost meanwhile, and what happens after it is back is told to the HAProxy that runs.
    machine.run(&["systemctl", "kill", "-s", "KILL", "seed-agent.service"]).ok();
    assert_eq!(fetch(&host), "Hello from Seed 200");
    machine.wait("the agent to be back", Duration::from_secs(30), || (ann.shell(&["status"]).code == 0).then_some(()));
    ann.shell(&["stop", "web"]).ok();
    let stopped = format!("{host} is stopped. 503");
    machine.wait("the page that says so", Duration::from_secs(30), || (fetch(&host) == stopped).then_some(()));
    // Over TLS nothing can be said but that there is nobody of this name.
    let refused = || {
        let words = ["timeout", "10", "openssl", "s_client", "-connect", "192.0.2.7:443", "-servername", &host];
        let said = machine.run(&words).all();
        assert!(said.contains("unrecognized name") && said.contains("SSL alert number 112"), "{said}");
    };
    refused();
    // Nor while it boots.
    let mut start = machine.spawn(&ann.asks(&["start", "web"]));
    let booting = format!("{host} is booting. 503");
    machine.wait("the page that says that it boots", Duration::from_secs(30), || (fetch(&host) == booting).then_some(()));
    refused();
    assert_eq!(fetch(&host), booting, "it booted for as long as that");
    assert!(start.wait().expect("it ends").success());
    page();
    assert_eq!(machine.main_pid(unit), second, "nothing restarts or reloads it");
}
