# How people and the host get in: ssh over vsock. No port of the network is opened for it.
{ config, lib, ... }:
let
  sshd = "${config.services.openssh.package or config.programs.ssh.package}/bin/sshd";
in
{
  services.openssh = {
    enable = lib.mkDefault true;
    # No process waits for what comes once a week.
    startWhenNeeded = lib.mkDefault true;
    # That is for `seed.expose.ssh`.
    openFirewall = lib.mkDefault false;
    # Made anew at each boot unless it is put on a volume, so the one kind that takes no time. Over vsock nobody asks for it: the host knows
    # whom it talks to.
    hostKeys = lib.mkDefault [
      {
        type = "ed25519";
        path = "/etc/ssh/ssh_host_ed25519_key";
      }
    ];
    settings.PasswordAuthentication = lib.mkDefault false;
  };

  systemd = {
    # systemd makes units of these names by itself where it finds sshd; those of /etc come first. What a newer NixOS says of them wins.
    sockets.sshd-vsock = {
      description = lib.mkDefault "ssh from the host";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "vsock::22" ];
      unitConfig.ConditionVirtualization = "vm";
      socketConfig = {
        Accept = true;
        PollLimitIntervalSec = "30s";
        PollLimitBurst = 50;
      };
    };
    services."sshd-vsock@" = {
      description = lib.mkDefault "ssh from the host";
      after = [ "sshd-keygen.service" ];
      wants = [ "sshd-keygen.service" ];
      # A session outlives changes of what started it.
      restartIfChanged = lib.mkDefault false;
      serviceConfig = lib.mapAttrs (_: lib.mkDefault) {
        ExecStart = "-${sshd} -i -D -f /etc/ssh/sshd_config";
        StandardInput = "socket";
        StandardError = "journal";
        KillMode = "process";
      };
    };

    # The keys with which the host comes in, as a credential.
    tmpfiles.rules = [
      "d /root/.ssh 0700 root root -"
      "f^ /root/.ssh/authorized_keys 0600 root root - ssh.authorized_keys.root"
    ];
  };
}
