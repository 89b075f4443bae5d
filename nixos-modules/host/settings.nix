# The agent's configuration: one TOML file made of the options, which the binary itself checks when the system is built.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.seed;
  sshd = config.services.openssh;
  inherit (lib) mkDefault mapAttrs;

  # The units of instances name these programs, and an instance whose unit reads the same is not touched: so the units must not name
  # paths that change with every upgrade. /etc changes as a whole when a system is switched to, and what runs keeps its files from
  # garbage collection, because Nix counts what processes have open.
  programs = "/etc/seed/programs";

  # Where systemd puts what it decrypts for the doors; services.nix has it do so.
  credential = name: option: if option == null then "" else "/run/credentials/seed-serve.service/${name}";

  toml = import ./toml.nix { inherit lib; };
in
{
  config = lib.mkIf cfg.enable {
    services.seed.settings = {
      domain = mkDefault cfg.domain;
      network = mapAttrs (_: mkDefault) {
        inherit (cfg.network) pool4 pool6;
        public_addresses = cfg.publicAddresses;
        nat_addresses = cfg.network.natAddresses;
        reserved_ports =
          cfg.network.reservedPorts ++ lib.optionals sshd.enable (map (port: "${toString port}/tcp") sshd.ports);
        upstream_dns = cfg.network.upstreamDns;
        uid_base = cfg.network.uidBase;
      };
      dns = mapAttrs (_: mkDefault) {
        inherit (cfg.dns)
          nameservers
          caa
          inside
          secondaries
          dnssec
          ;
        answers_per_second = cfg.dns.answersPerSecond;
        transfer_key = credential "transfer_key" cfg.dns.transferKey;
      };
      quota = mapAttrs (_: mkDefault) cfg.quota;
      hypervisor = mapAttrs (_: mkDefault) {
        inherit (cfg.hypervisor) kind acceleration;
        boot_timeout_secs = cfg.hypervisor.bootTimeout;
        stop_timeout_secs = cfg.hypervisor.stopTimeout;
      };
      storage.directory = mkDefault cfg.storage.directory;
      build = mapAttrs (_: mkDefault) {
        parallel = cfg.limits.parallelBuilds;
        eval_timeout_secs = cfg.limits.evaluationTime;
        eval_memory = cfg.limits.evaluationMemory;
        build_timeout_secs = cfg.limits.buildTime;
        allow_addresses = cfg.build.allowAddresses;
        keep_generations = cfg.limits.generations;
      };
      ssh = mapAttrs (_: mkDefault) {
        inherit (cfg.ssh) port;
        max_pack = cfg.limits.push;
      };
      github = mapAttrs (_: mkDefault) {
        inherit (cfg.github) server;
        ssh_server = if cfg.github.sshServer == null then "" else cfg.github.sshServer;
        webhook = if cfg.github.webhook == null then "" else cfg.github.webhook;
        fetch_every_secs = cfg.github.fetchEvery;
        fetch_timeout_secs = cfg.github.fetchTime;
      };
      logs.max_per_instance = mkDefault cfg.limits.journal;
      audit.keep = mkDefault cfg.limits.audit;
      acme = mapAttrs (_: value: mkDefault (if value == null then "" else value)) {
        inherit (cfg.acme) directory email;
        eab_kid = cfg.acme.eabKid;
        eab_key_file = credential "eab_key" cfg.acme.eabKey;
        ca_root = cfg.acme.caRoot;
        per_week = cfg.acme.perWeek;
        per_namespace_week = cfg.acme.perNamespaceWeek;
      };
      ingress.enable = mkDefault cfg.ingress.enable;
      rollout.drain_secs = mkDefault cfg.rollout.drainTime;
      paths = mapAttrs (_: mkDefault) {
        run = "/run/seed";
        seed = "${programs}/seed";
        cloud_hypervisor = "${programs}/cloud-hypervisor";
        qemu = "${programs}/qemu";
        virtiofsd = "${programs}/virtiofsd";
        swtpm = "${programs}/swtpm";
        vhost_device_vsock = "${programs}/vhost-device-vsock";
        journal_remote = "${programs}/systemd-journal-remote";
        # These run where /etc is hidden, and no unit of an instance names them.
        nix = lib.getExe' config.nix.package "nix";
        git = lib.getExe' pkgs.gitMinimal "git";
      };
    };

    environment.etc = {
      "seed/seed.toml".source =
        pkgs.runCommandLocal "seed.toml"
          {
            text = toml cfg.settings;
            passAsFile = [ "text" ];
          }
          ''
            cp "$textPath" seed.toml
            ${lib.optionalString (pkgs.stdenv.buildPlatform.system == pkgs.stdenv.hostPlatform.system) ''
              ${lib.getExe' cfg.package "seed"} check-config seed.toml >&2
            ''}
            cp seed.toml $out
          '';
      "seed/programs/seed".source = lib.getExe' cfg.package "seed";
      "seed/programs/cloud-hypervisor".source = lib.getExe' cfg.programs.cloudHypervisor "cloud-hypervisor";
      "seed/programs/qemu".source =
        lib.getExe' cfg.programs.qemu
          "qemu-system-${pkgs.stdenv.hostPlatform.parsed.cpu.name}";
      "seed/programs/virtiofsd".source = lib.getExe' cfg.programs.virtiofsd "virtiofsd";
      "seed/programs/swtpm".source = lib.getExe' cfg.programs.swtpm "swtpm";
      "seed/programs/vhost-device-vsock".source =
        lib.getExe' cfg.programs.vhostDeviceVsock
          "vhost-device-vsock";
      "seed/programs/systemd-journal-remote".source = "${config.systemd.package}/lib/systemd/systemd-journal-remote";
    };
  };
}
