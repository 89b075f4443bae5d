# Somebody pushes a flake to a host and gets a page; what is not exposed stays closed, and a restart of the host brings it back.
{ mkSeed }:
{ pkgs, ... }:
let
  tenant = import ./parts/tenant.nix { inherit pkgs mkSeed; };
in
{
  name = "seed-push";
  globalTimeout = 60 * 60;

  nodes.host = {
    imports = [ (import ./parts/host.nix { inherit tenant; }) ];
    users.users.alice.isNormalUser = true;
    services.seed.operators = [ "alice" ];
  };
  nodes.person = import ./parts/person.nix;

  testScript = ''
    flake = "${tenant.flake}"
    meta = "${tenant.meta}"
    ${builtins.readFile ./parts/push.py}

    with subtest("what is not exposed is closed"):
        person.fail(f"timeout 10 bash -c '</dev/tcp/web.{namespace}.seed.example/22'")

    with subtest("a guest reaches DNS at its gateway, through the host's firewall"):
        host.succeed("iptables -S nixos-fw | grep -- '-i seed+.*--dport 53'")

    with subtest("the Nix daemon is kept from what is private"):
        denied = host.succeed("systemctl show nix-daemon -p IPAddressDeny")
        assert "127.0.0.0/8" in denied and "169.254.0.0/16" in denied, denied

    with subtest("an operator restarts what is Seed's, and nothing else"):
        host.succeed("runuser -u alice -- systemctl --no-ask-password restart seed-serve.service")
        host.fail("runuser -u alice -- systemctl --no-ask-password restart nix-daemon.service")

    with subtest("it comes back with the host"):
        host.shutdown()
        host.start()
        host.wait_for_unit("seed-agent.service")
        assert "Hello from Seed" in person.wait_until_succeeds(f"curl -sSf -m 10 {url}", timeout=1800)
  '';
}
