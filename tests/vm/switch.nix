# Instances go on running through `nixos-rebuild switch`: one that changes the firewall, one that changes the configuration, one that
# replaces Seed itself. Meanwhile the page answers, and the door refuses nobody.
{ mkSeed }:
{ pkgs, ... }:
let
  tenant = import ./parts/tenant.nix { inherit pkgs mkSeed; };
in
{
  name = "seed-switch";
  globalTimeout = 60 * 60;

  nodes.host =
    { config, ... }:
    {
      imports = [ (import ./parts/host.nix { inherit tenant; }) ];
      specialisation = {
        firewall.configuration = {
          networking.firewall.allowedTCPPorts = [ 8080 ];
          boot.kernel.sysctl."vm.swappiness" = 10;
        };
        settings.configuration.services.seed.limits.parallelBuilds = 3;
        # The same program at another path, as an upgrade brings it.
        newer.configuration.services.seed.package = pkgs.runCommandLocal "seed-newer" { meta.mainProgram = "seed"; } ''
          cp -r ${config.services.seed.package} $out
          chmod -R u+w $out
          touch $out/newer
        '';
      };
    };
  nodes.person = import ./parts/person.nix;

  testScript = ''
    flake = "${tenant.flake}"
    meta = "${tenant.meta}"
    ${builtins.readFile ./parts/push.py}


    def show(unit, *properties):
        lines = host.succeed(f"systemctl show {unit} -p {','.join(properties)}")
        return dict(line.split("=", 1) for line in lines.splitlines())


    def instance():
        kinds = ["vm", "store", "tpm", "vsock", "journal"]
        units = [f"seed-{kind}@{namespace}-web.service" for kind in kinds]
        return {one: show(one, "MainPID", "InvocationID", "NRestarts") for one in units}


    system = "/run/booted-system/specialisation"
    before, agent = instance(), show("seed-agent", "MainPID")
    sockets = show("seed-serve.socket", "InvocationID")
    # Writes a line for each page that did not come, and for each time that somebody was not let in: a command that is under way when
    # the doors are restarted may end early.
    person.succeed(
        f"(while sleep 0.2; do curl -sSf -m 5 {url} >/dev/null || date; done) >/tmp/page 2>&1 & echo $! >/tmp/pids",
        "(while sleep 0.2; do timeout 60 ssh seed.example help 2>&1 >/dev/null | grep -E 'refused|timed out|resolve'; done) "
        ">/tmp/door 2>&1 & echo $! >>/tmp/pids",
    )

    for name in ["firewall", "settings", "newer"]:
        with subtest(f"a switch to other {name} leaves the instance alone"):
            host.succeed(f"{system}/{name}/bin/switch-to-configuration test 2>&1", timeout=300)
            host.wait_for_unit("seed-agent.service")
            host.wait_for_unit("seed-serve.service")
            # The new agent has looked at everything once.
            host.succeed("seed plan")
            assert instance() == before, f"{instance()} is not {before}"
            assert show("seed-serve.socket", "InvocationID") == sockets, "the door was closed"
            host.succeed("nft list table inet seed", "sysctl -n net.ipv4.ip_forward | grep -x 1")

    with subtest("the agent is the new one"):
        now = show("seed-agent", "MainPID")
        assert now != agent
        exe = host.succeed(f"readlink /proc/{now['MainPID']}/exe")
        assert "seed-newer" in exe, exe

    with subtest("nobody was turned away"):
        person.succeed("kill $(cat /tmp/pids)")
        assert person.succeed("cat /tmp/page /tmp/door") == ""

    with subtest("the next start takes the new program, and the page is there again"):
        host.succeed("seed restart web", timeout=1800)
        pid = show(unit, "MainPID")["MainPID"]
        assert "seed-newer" in host.succeed(f"readlink /proc/{pid}/exe")
        person.wait_until_succeeds(f"curl -sSf -m 10 {url}", timeout=300)
  '';
}
