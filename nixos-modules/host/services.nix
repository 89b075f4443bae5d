# The agent and the doors: units, user, bus policy, polkit rule.
#
# Why `nixos-rebuild switch` leaves instances alone, also when it replaces the agent. switch-to-configuration looks at each unit that is
# active and has a file in /etc/systemd/system, and compares that with the new system's; a unit without one there it passes over. Then:
#
# - The units of instances are files in /run/systemd/system, which the agent writes. Neither they nor a template of theirs are in
#   /etc/systemd/system (there must never be a `seed-vm@.service` there), so none is stopped, restarted or reloaded. Their slices have no
#   file at all. A daemon-reload reads them again and changes nothing; a new systemd is a daemon-reexec, which keeps what runs.
# - Nothing that is restarted takes them along: their Requires= name one another, and no unit of the system has them in Requires=,
#   PartOf= or BindsTo=. They are ordered after network.target, which orders, and does not stop.
# - The agent's unit changes with its package or configuration. `stopIfChanged = false` makes that one restart after activation. It
#   takes no child along: instances and builds are units of their own. The new agent looks at what runs, renders what it wants, and
#   touches an instance only if the two texts differ. They name programs by /etc/seed/programs, so a new package makes no difference.
# - The doors likewise, and here `stopIfChanged = false` matters twice: a service that is stopped and started has its sockets closed
#   between, while one that is restarted leaves them with systemd, and who connects waits in the queue.
# - Sockets that have changed are left as they are: a new port needs them restarted by hand, as `ssh.port` says.
# - The firewall's own table is another than Seed's; assertions.nix keeps `flushRuleset` off. Forwarding would be turned off by the sysctl
#   that NixOS sets by default: network.nix has it on. The network's daemons keep their hands off taps, there too.
# - The state is in storage.directory and /run/seed, both with RuntimeDirectoryPreserve= or kept by nature; roots in /nix/var keep the
#   systems of instances from garbage collection.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.seed;
  state = cfg.settings.storage.directory;
  run = cfg.settings.paths.run;
  ingress = cfg.settings.ingress.enable;

  texts = import ./unit-texts.nix {
    inherit lib state run;
    seed = lib.getExe' cfg.package "seed";
    haproxy = lib.getExe' cfg.programs.haproxy "haproxy";
  };

  # Real files of their own names: systemd takes a link for an alias.
  units = pkgs.runCommandLocal "seed-units" { } (
    "mkdir -p $out/lib/systemd/system\n"
    + lib.concatStrings (
      lib.mapAttrsToList (name: text: "cp ${pkgs.writeText name text} $out/lib/systemd/system/${name}\n") texts
    )
  );

  # A package of its own: the bus is told to read its configuration again only if this file changes.
  policy = pkgs.writeTextDir "share/dbus-1/system.d/farm.loom.Seed1.conf" (
    builtins.readFile ../../units/farm.loom.Seed1.conf
  );

  # A folder of the repository's tmpfiles.conf, without its comments.
  folders = lib.filter (line: line != "" && !lib.hasPrefix "#" line) (
    lib.splitString "\n" (
      lib.replaceStrings [ "/var/lib/seed" "/run/seed" ] [ state run ] (
        builtins.readFile ../../units/tmpfiles.conf
      )
    )
  );

  configuration = config.environment.etc."seed/seed.toml".source;

  # Puts the key that systemd decrypted where the door looks for one: a link, so that the key itself is in memory only. A key that the door
  # made before is kept beside it.
  linkHostKey = pkgs.writeShellScript "seed-link-host-key" ''
    key=${state}/ssh/host_ed25519
    if [ -f "$key" ] && [ ! -L "$key" ]; then mv "$key" "$key.made"; fi
    ln -sfn "$CREDENTIALS_DIRECTORY/host_ed25519" "$key"
  '';

  # What the doors know and the store does not.
  secrets = lib.filterAttrs (_: file: file != null) {
    host_ed25519 = cfg.ssh.hostKey;
    transfer_key = cfg.dns.transferKey;
    eab_key = cfg.acme.eabKey;
  };

  behindIngress = door: {
    wantedBy = [ "sockets.target" ];
    socketConfig = lib.mkIf ingress {
      ListenStream = [
        ""
        "${run}/doors/${door}.sock"
      ];
      SocketMode = "0660";
      SocketGroup = "seed-ingress";
    };
  };

  # `ListenStream=` alone forgets what the unit file says.
  dnsListen =
    kind:
    lib.mkIf (cfg.dns.listenAddresses != [ ]) {
      ${kind} = [ "" ] ++ map (address: "${if lib.hasInfix ":" address then "[${address}]" else address}:53") cfg.dns.listenAddresses;
    };

  inherit (import ./gateway.nix { inherit lib; }) gateways;
in
{
  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    systemd.packages = [ units ];

    systemd.services.seed-agent = {
      wantedBy = [ "multi-user.target" ];
      stopIfChanged = false;
      restartTriggers = [ configuration ];
      # systemd-run, systemctl and journalctl are in every unit's PATH.
      path = [
        pkgs.iproute2
        pkgs.nftables
        pkgs.e2fsprogs
        pkgs.gitMinimal
        config.nix.package
      ];
    };

    systemd.services.seed-serve = {
      wantedBy = [ "multi-user.target" ];
      stopIfChanged = false;
      restartTriggers = [ configuration ];
      path = [ pkgs.gitMinimal ];
      serviceConfig = {
        LoadCredentialEncrypted = lib.mkIf (secrets != { }) (lib.mapAttrsToList (name: file: "${name}:${file}") secrets);
        ExecStartPre = lib.mkIf (cfg.ssh.hostKey != null) "${linkHostKey}";
      };
    };

    systemd.sockets.seed-serve = {
      wantedBy = [ "sockets.target" ];
      listenStreams = [
        ""
        (toString cfg.settings.ssh.port)
      ];
    };
    # With an ingress, its are ports 80 and 443; what is for the host itself comes from there.
    systemd.sockets.seed-serve-http = behindIngress "http";
    systemd.sockets.seed-serve-https = behindIngress "https";
    systemd.sockets.seed-ingress = lib.mkIf ingress { wantedBy = [ "sockets.target" ]; };
    # Restarted, not stopped and started: its sockets stay open.
    systemd.services.seed-ingress = lib.mkIf ingress {
      wantedBy = [ "multi-user.target" ];
      stopIfChanged = false;
    };
    systemd.sockets.seed-serve-dns-tcp = {
      wantedBy = [ "sockets.target" ];
      socketConfig = dnsListen "ListenStream";
    };
    systemd.sockets.seed-serve-dns-udp = {
      wantedBy = [ "sockets.target" ];
      socketConfig = dnsListen "ListenDatagram";
    };
    # Nobody but an instance is served there.
    systemd.sockets.seed-serve-acme = {
      wantedBy = [ "sockets.target" ];
      socketConfig.ListenStream = [
        ""
      ] ++ map (address: "${if lib.hasInfix ":" address then "[${address}]" else address}:9876") (gateways cfg.settings.network);
    };
    # systemd-resolved holds port 53 of a loopback address, so every address cannot be had.
    services.seed.dns.listenAddresses = lib.mkIf config.services.resolved.enable (
      lib.mkDefault (gateways cfg.settings.network ++ cfg.settings.network.public_addresses)
    );

    systemd.tmpfiles.rules = folders;

    # The user of the doors. Instances run as users of their own, which the agent describes in /run/userdb while they exist; nss-systemd,
    # which NixOS has by default, reads them there.
    users.users.seed = {
      isSystemUser = true;
      group = "seed";
      description = "Doors of Seed";
      home = state;
    };
    users.groups.seed = { };
    users.users.seed-ingress = {
      isSystemUser = true;
      group = "seed-ingress";
      description = "Ingress of Seed";
    };
    users.groups.seed-ingress = { };

    services.dbus.packages = [ policy ];

    users.groups.seed-operators = lib.mkIf (cfg.operators != [ ]) { members = cfg.operators; };
    users.groups.systemd-journal = lib.mkIf (cfg.operators != [ ]) { members = cfg.operators; };
    security.polkit = lib.mkIf (cfg.operators != [ ]) {
      enable = true;
      extraConfig = builtins.readFile ./operators.js;
    };
  };
}
