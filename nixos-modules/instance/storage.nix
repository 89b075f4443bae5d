# Volumes, on the guest's side.
#
# The host makes the file system, attaches it as a disk whose serial number is the volume's name, and says where to mount it in the
# credential `fstab.extra`: systemd grows it if the disk grew, and mounts it before local-fs.target. Every service waits for that target, so
# none starts without a volume; and because the lines do not say `nofail`, a machine that lacks one stops there and says so, instead of
# writing to memory. What is left to do here is ownership.
{ config, lib, ... }:
let
  inherit (config.seed) storage;
  given = value: if value == null then "-" else value;
  owned = lib.filterAttrs (_: one: one.user != null || one.group != null || one.mode != null) storage;
  temporary = lib.filter (one: lib.hasPrefix "/tmp/" one.mountPoint || lib.hasPrefix "/var/tmp/" one.mountPoint) (
    lib.attrValues storage
  );
in
{
  # After local-fs.target and before every service. `d` changes what is there.
  systemd.tmpfiles.rules =
    lib.mapAttrsToList (_: one: "d ${one.mountPoint} ${given one.mode} ${given one.user} ${given one.group} -") owned
    # Otherwise cleaned of what was not touched for ten days.
    ++ map (one: "x ${one.mountPoint}") temporary;
}
