# The configuration that the host module writes, as a text: of a host that says no more than its domain, and of one that says all.
{ nixpkgs }:
let
  lib = import (nixpkgs + "/lib");
  toml = import ../../nixos-modules/host/toml.nix { inherit lib; };
  of =
    seed:
    toml
      (import (nixpkgs + "/nixos/lib/eval-config.nix") {
        system = "x86_64-linux";
        modules = [
          ../../nixos-modules/host
          {
            services.seed = {
              enable = true;
              domain = "seed.example";
            } // seed;
            system.stateVersion = "25.05";
          }
        ];
      }).config.services.seed.settings;
in
{
  least = of { };
  most = of {
    publicAddresses = [
      "192.0.2.7"
      "2001:db8::7"
    ];
    hypervisor = {
      kind = "qemu";
      acceleration = "tcg";
      bootTimeout = 5;
      stopTimeout = 600;
    };
    storage.directory = "/var/lib/other";
    network = {
      pool4 = "10.200.0.0/29";
      pool6 = "2001:db8:1:2::/64";
      upstreamDns = [
        "192.0.2.53"
        "192.0.2.53:5353"
        "[2001:db8::53]:53"
      ];
      natAddresses = [
        "10.0.0.5"
        "fd00::5"
      ];
      reservedPorts = [
        "2200/tcp"
        "51820/udp"
        "8080"
      ];
      uidBase = 2000000000;
    };
    limits = {
      parallelBuilds = 64;
      evaluationTime = 3600;
      evaluationMemory = "128Mi";
      buildTime = 86400;
      generations = 100;
      push = "64Ki";
      journal = "64Gi";
      audit = "1024Ti";
    };
    build.allowAddresses = [
      "10.1.2.3"
      "2001:db8::/32"
    ];
    github = {
      server = "https://git.example.org";
      sshServer = "ssh://git@git.example.org:2222";
      webhook = "https://hooks.example.org/webhook/github";
      fetchEvery = 60;
      fetchTime = 60;
    };
    dns = {
      nameservers = [ "ns2.example.net" ];
      caa = [ "letsencrypt.org" ];
      inside = [ "192.168.1.0/24" ];
      answersPerSecond = 0;
      secondaries = [ "192.0.2.53" ];
      transferKey = "/etc/credstore.encrypted/transfer_key";
    };
    quota = {
      instances = 1000;
      vcpus = 1;
      memory = "512Mi";
      volumes = "8Mi";
      repository = "1Mi";
      builds = 64;
      logs = "16Mi";
      routes = 65535;
    };
    ssh.port = 2222;
    acme = {
      directory = "https://ca.example/directory";
      email = "operator@seed.example";
      eabKid = "kid-1";
      eabKey = "/etc/credstore.encrypted/eab_key";
      caRoot = "/etc/seed/ca.pem";
      perWeek = 1;
      perNamespaceWeek = 100000;
    };
    ingress.enable = true;
    rollout.drainTime = 3600;
    settings.paths = {
      run = "/run/other";
      seed = "/opt/seed";
      cloud_hypervisor = "/opt/cloud-hypervisor";
      qemu = "/opt/qemu";
      virtiofsd = "/opt/virtiofsd";
      swtpm = "/opt/swtpm";
      vhost_device_vsock = "/opt/vhost-device-vsock";
      journal_remote = "/opt/systemd-journal-remote";
      nix = "/opt/nix";
      git = "/opt/git";
    };
  };
  # Not together with secondaries.
  signed = of { dns.dnssec = true; };
  wrong = of { settings.network.pool5 = "10.0.0.0/8"; };
}
