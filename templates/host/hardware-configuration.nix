# CHANGE: replace this file with what `nixos-generate-config --show-hardware-config` says on the machine.
{
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  boot.loader.grub.device = "/dev/vda";
  nixpkgs.hostPlatform = "x86_64-linux";
}
