//! From a push to a page, and every push after that.

use std::time::Duration;

use crate::machine::Machine;

const BOOT: Duration = Duration::from_secs(120);

#[test]
fn a_push_becomes_a_page() {
    let machine = Machine::new("page", &[]);
    let ann = machine.tenant("ann", "my-app");
    // Before it is planted nothing runs, and the push says what to do.
    let first = ann.push(&[]);
    let text = first.all();
    assert_eq!(first.code, 0, "{text}");
    assert!(text.contains("remote:") && text.contains("plant silo:my-app"), "{text}");
    let (planted, namespace) = ann.plant();
    assert!(planted.contains(&namespace) && planted.contains("web"), "{planted}");
    assert_eq!(ann.page("web"), "Hello from Seed");
    assert_eq!(ann.state("web"), "running");

    // systemd tells the truth.
    let unit = format!("seed-vm@{namespace}-web.service");
    assert_eq!(machine.property(&unit, "ActiveState"), "active");
    assert!(machine.run(&["systemctl", "cat", &unit]).ok().contains("qemu-system-x86_64"));
    assert_eq!(machine.property(&unit, "NeedDaemonReload"), "no");
    let slice = machine.property(&unit, "Slice");
    assert_eq!(slice, format!("seed-{}.slice", &namespace[2..]));
    let user = machine.property(&unit, "User");
    assert_ne!(user, "root");
    let machines = machine.run(&["machinectl", "--no-legend", "list"]).ok();
    assert!(machines.contains(&format!("{namespace}-web")), "{machines}");

    // A changed page is a new boot, and the push says how it goes.
    ann.edit("Hello from Seed", "Hello again");
    let changed = ann.push(&[]);
    let text = changed.all();
    assert_eq!(changed.code, 0, "{text}");
    for part in ["evaluating", "built", "web: restart (system changed)", "booting", "web is running"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert_eq!(ann.page("web"), "Hello again");

    // An unchanged flake touches nothing.
    let pid = machine.main_pid(&unit);
    let same = ann.push(&[]).all();
    assert!(same.contains("unchanged, not touched"), "{same}");
    assert_eq!(machine.main_pid(&unit), pid);

    // A plan changes nothing.
    ann.edit("Hello again", "Never seen");
    let plan = ann.push(&["-o", "plan"]).all();
    assert!(plan.contains("web: restart (system changed)") && plan.contains("nothing was changed"), "{plan}");
    assert_eq!(machine.main_pid(&unit), pid);

    // A person who stops a unit is obeyed; one who starts it again too.
    machine.run(&["systemctl", "stop", &unit]).ok();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ann.state("web"), "stopped");
    machine.run(&["systemctl", "start", &unit]).ok();
    assert_eq!(ann.page("web"), "Hello again");
    let restarted = ann.shell(&["restart", "web"]);
    assert_eq!(restarted.code, 0, "{}", restarted.all());
    assert_ne!(machine.main_pid(&unit), pid);
    assert_eq!(ann.page("web"), "Hello again");
}

#[test]
fn of_two_instances_only_the_changed_one_is_restarted_and_a_removed_one_goes() {
    let machine = Machine::new("two", &[]);
    let ann = machine.tenant("ann", "pair");
    ann.edit("seeds.web = {", TWO);
    let (_, namespace) = ann.plant();
    let unit = |name: &str| format!("seed-vm@{namespace}-{name}.service");
    assert_eq!((ann.state("web").as_str(), ann.state("api").as_str()), ("running", "running"));
    // Each has an address of its own: both expose port 80.
    assert_eq!(ann.status()["namespaces"][0]["instances"][0]["ports"], ann.status()["namespaces"][0]["instances"][1]["ports"]);
    let api = machine.main_pid(&unit("api"));
    ann.edit("page = \"Hello from Seed\"", "page = \"Second\"");
    let text = ann.push(&[]).all();
    assert!(text.contains("api: unchanged") && text.contains("web: restart"), "{text}");
    assert_eq!(machine.main_pid(&unit("api")), api);
    assert_eq!(ann.page("web"), "Second");
    // `api` runs the same system under another name; it leaves the flake, its volume stays.
    ann.edit(TWO, "seeds.web = {");
    let text = ann.push(&[]).all();
    assert!(text.contains("api: remove"), "{text}");
    machine.wait("api is gone", BOOT, || (machine.property(&unit("api"), "LoadState") == "not-found").then_some(()));
    assert_eq!(ann.state("web"), "running");
    let status = ann.shell(&["status"]).ok();
    assert!(status.contains("api/data"), "a retired volume is listed:\n{status}");
}

/// A second instance before the first; it never changes, since its page is its own.
pub const TWO: &str = r##"seeds.api = {
        meta = { version = 1; name = "api"; expose.http = { port = 80; protocol = "http"; }; storage.data = { size = "64Mi"; }; };
        toplevel = build "seed-api" ''
          $b mkdir -p $out/layer
          $b ln -s ${system}/boot/kernel ${system}/boot/initrd $out/
          $b printf %s "$params" >$out/kernel-params
          $b printf '%s\n' "#!$b sh" "b=$b" "out=$out" "$init" >$out/init
          $b chmod +x $out/init
        '' { inherit init; params = "quiet loglevel=3"; };
      };
      seeds.web = {"##;

#[test]
fn twenty_pushes_in_a_row_end_with_the_last() {
    let machine = Machine::new("twenty", &[]);
    let ann = machine.tenant("ann", "busy");
    ann.plant();
    let mut before = "Hello from Seed".to_owned();
    for round in 1..=20 {
        let page = format!("Page {round}");
        ann.edit(&format!("page = \"{before}\""), &format!("page = \"{page}\""));
        let pushed = ann.push(&["-o", "async"]);
        assert_eq!(pushed.code, 0, "{}", pushed.all());
        before = page;
    }
    machine.wait("the last page", Duration::from_secs(240), || (ann.page("web") == "Page 20").then_some(()));
    machine.wait("the queue is empty", BOOT, || {
        let status = ann.status();
        (status["namespaces"][0]["deploying"] == "").then_some(())
    });
    assert_eq!(ann.page("web"), "Page 20");
}

#[test]
fn who_hangs_up_does_not_stop_the_deploy() {
    let machine = Machine::new("hangup", &[]);
    let ann = machine.tenant("ann", "gone");
    ann.push(&[]).ok();
    let code = machine.invite();
    // The client is ended long before the guest is up.
    ann.shell_for(2, &["plant", "silo:gone", &code]);
    machine.wait("the page", BOOT, || (ann.page("web") == "Hello from Seed").then_some(()));
}
