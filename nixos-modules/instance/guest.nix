# The virtual machine: a NixOS with its own kernel and initrd, whose root is memory and whose store is its host's.
#
# What its host gives it, and who in it takes that:
#
#   kernel, initrd, init, kernel-params   read from `system.build.toplevel`
#   virtiofs share `store`                /nix/store: the store paths of this instance and no others, read-only
#   virtio disks                          volumes; the serial number is the name            (storage.nix)
#   virtio network card                   addresses come as a systemd credential            (network.nix)
#   vsock                                 notifications and journal out, ssh in             (access.nix)
#   TPM                                   if it is asked for                                (tpm.nix)
#   SMBIOS strings                        systemd credentials: host name, network, volumes, /run/seed/env
#
# systemd acts on the credentials by itself, from version 256 on. /run/seed/env is one of them, `tmpfiles.extra`: systemd-tmpfiles writes it
# before sysinit.target, and every service comes after that; only one with `DefaultDependencies=no` has to name
# `After=systemd-tmpfiles-setup.service`.
{ config, lib, ... }:
{
  # One that is no name is refused in Seed's words, not in those of this option.
  networking.hostName = lib.mkIf (builtins.match "[a-z0-9-]+" config.seed.name != null) (lib.mkDefault config.seed.name);

  # Decides the formats of what lies on volumes, as of a database. It is one number for all instances and will not change, so that a newer
  # Seed or nixpkgs converts nobody's data; whoever wants the new format of a service says so.
  system.stateVersion = lib.mkDefault "25.05";

  boot = {
    # The host starts the kernel by itself.
    loader.grub.enable = false;

    initrd = {
      # Finds the system by `init=` of the command line, mounts side by side, and hands credentials on. Also the quicker of the two kinds.
      systemd.enable = lib.mkDefault true;
      # Drivers of real hardware: disks, USB, keyboards.
      includeDefaultModules = false;
      # Loaded at once, because something waits for each: the disk and network transport, the store, and the first notification.
      kernelModules = [
        "virtio_pci"
        "virtiofs"
        "virtio_blk"
        "virtio_net"
        "vmw_vsock_virtio_transport"
      ];
    };

    kernelParams = [
      # The console is a serial port, and each further one that the kernel looks for costs time.
      "8250.nr_uarts=1"
      # Self-tests of ciphers: they test the kernel, which is the same for everybody, and not the machine.
      "cryptomgr.notests"
    ];
    # A serial console is slow, and what is written to it stands in the logs of the instance: errors only.
    consoleLogLevel = lib.mkDefault 3;

    # No host disk is ever in need of them, and all but one tenant have one kind of volume.
    supportedFilesystems = [ "ext4" ];
    swraid.enable = lib.mkDefault false;
  };

  fileSystems = {
    # Gone when the machine stops; what shall stay goes on a volume.
    "/" = {
      device = "root";
      fsType = "tmpfs";
      options = [
        "mode=0755"
        "size=50%"
      ];
      neededForBoot = true;
    };
    "/nix/store" = {
      device = "store";
      fsType = "virtiofs";
      options = [ "ro" ];
      neededForBoot = true;
    };
  };

  # Everything that runs comes from the store: unmounting it while the machine goes down ends in a wait for what cannot end.
  systemd.mounts = [
    {
      what = "store";
      where = "/nix/store";
      overrideStrategy = "asDropin";
      unitConfig.DefaultDependencies = false;
    }
  ];

  services.journald = {
    # Forwarded to the host as it is written, and kept there; the copy in the guest only serves `journalctl` in it.
    storage = lib.mkDefault "volatile";
    extraConfig = "RuntimeMaxUse=16M";
  };

  # Without a login on the console, nobody is there to be locked out: `exec` and `shell` come in over vsock.
  users = {
    mutableUsers = lib.mkDefault false;
    allowNoPasswordLogin = lib.mkDefault true;
  };
}
