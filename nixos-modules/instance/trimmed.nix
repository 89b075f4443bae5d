# What a stock NixOS has and an instance does not, so that it is small and boots quickly. All of it can be switched on again.
#
# | off | why |
# |---|---|
# | documentation, man pages, info | nobody reads them in there; the largest part that no service needs |
# | nix and its daemon | the store is read-only, and a new version is a new boot |
# | switch-to-configuration, installer tools | likewise |
# | sudo | only services run in there, and who comes in over vsock is root |
# | logins on consoles and terminals | nobody sits there |
# | `environment.defaultPackages` (perl, strace, rsync), nano, less's preprocessor, command-not-found | tools for people who are not there |
# | LVM, udisks, thermal and power management, firmware, containers | hardware and disks are the host's |
# | logrotate | logs go to the journal, which has limits |
# | icons, MIME types, sounds, fonts | no screen |
# | all languages but C.UTF-8 | 200 MB of locales |
#
# Kept on purpose: the stock kernel, because it comes from the cache and tenants need modules that cannot be foreseen; the firewall; time
# synchronization, because certificates need the time; nscd, because names of instances are found through it.
{ lib, options, ... }:
let
  off = lib.mkDefault false;
in
{
  documentation = {
    enable = off;
    doc.enable = off;
    info.enable = off;
    man.enable = off;
    nixos.enable = off;
  };

  nix.enable = off;
  system.disableInstallerTools = lib.mkDefault true;
  system.switch.enable = off;

  security.sudo.enable = off;

  console.enable = off;
  systemd = {
    services = {
      "serial-getty@".enable = off;
      "getty@tty1".enable = off;
      "autovt@".enable = off;
    };
  }
  # Measured boot is for who does not trust the host; it waits for the TPM before anything else does.
  // lib.optionalAttrs (options.systemd ? tpm2) { tpm2.enable = off; };

  environment = {
    defaultPackages = lib.mkDefault [ ];
    stub-ld.enable = off;
  };
  programs = {
    command-not-found.enable = off;
    nano.enable = off;
    less.lessopen = lib.mkDefault null;
  };

  services = {
    logrotate.enable = off;
    lvm.enable = off;
    udisks2.enable = off;
  };
  powerManagement.enable = off;
  hardware.enableRedistributableFirmware = off;
  boot = {
    enableContainers = off;
    initrd.systemd = lib.optionalAttrs (options.boot.initrd.systemd ? tpm2) { tpm2.enable = off; };
  };

  fonts.fontconfig.enable = off;
  xdg = {
    autostart.enable = off;
    icons.enable = off;
    mime.enable = off;
    sounds.enable = off;
  };

  i18n = {
    defaultLocale = lib.mkDefault "C.UTF-8";
    supportedLocales = lib.mkDefault [ "C.UTF-8/UTF-8" ];
  };
}
