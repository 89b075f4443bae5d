# The TPM, the age key in it, and what sops-nix needs to decrypt with that key.
#
# The key never leaves the TPM. What stands in /seed/tpm/age-identity is of no use without this very TPM, so it is no secret; but it must be
# the same at each boot, and the root of an instance is memory. So it is kept in the TPM as well, in its non-volatile memory, whose contents
# the host keeps with the instance. A host that knows the identity may hand it over as the credential `seed.age-identity`, and wins.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.seed.tpm;
  # Those that a unit decrypts.
  secrets =
    options ? sops
    && config.sops.useSystemdActivation
    && lib.any (secret: !secret.neededForUsers) (lib.attrValues config.sops.secrets);
  identity = "/seed/tpm/age-identity";
in
{
  config = lib.mkMerge [
    (lib.mkIf cfg.enable {
      # One is what Cloud Hypervisor has, the other QEMU.
      boot.initrd.availableKernelModules = [
        "tpm_crb"
        "tpm_tis"
      ];

      systemd.services.seed-tpm-identity = {
        description = "age key in the TPM";
        # No part of the boot waits for it, unless there are secrets.
        wantedBy = [ "multi-user.target" ];
        requires = [ "dev-tpmrm0.device" ];
        after = [
          "dev-tpmrm0.device"
          "local-fs.target"
        ];
        before = [ "shutdown.target" ];
        conflicts = [ "shutdown.target" ];
        unitConfig.DefaultDependencies = false;
        path = [
          pkgs.age-plugin-tpm
          pkgs.tpm2-tools
        ];
        environment.TPM2TOOLS_TCTI = "device:/dev/tpmrm0";
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ImportCredential = "seed.age-identity";
        };
        script = lib.readFile ./tpm-identity.sh;
      };
    })

    (lib.mkIf (cfg.enable && secrets) {
      systemd.services.sops-install-secrets = {
        wants = [ "seed-tpm-identity.service" ];
        after = [ "seed-tpm-identity.service" ];
        # And all services that read secrets after it: no service starts before this target.
        before = [ "sysinit.target" ];
      };
    })

    # Only where sops-nix is there at all: `mkSeed` brings it.
    (lib.optionalAttrs (options ? sops) {
      sops = lib.mkIf cfg.enable {
        age = {
          keyFile = lib.mkDefault identity;
          plugins = lib.mkDefault [ pkgs.age-plugin-tpm ];
          # The host keys of ssh are new at each boot: nothing can be encrypted to them.
          sshKeyPaths = lib.mkDefault [ ];
        };
        gnupg.sshKeyPaths = lib.mkDefault [ ];
        # As a unit, which can wait for the key; an activation script runs before anything else does.
        useSystemdActivation = lib.mkDefault true;
      };
    })
  ];
}
