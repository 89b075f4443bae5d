# What Seed gives to a tenant's flake. `nixpkgs` and `sopsNix` are flake inputs or just paths of checkouts: what is used of them are files.
{
  nixpkgs,
  # Without it, an instance has no `sops.*`.
  sopsNix ? null,
}:
let
  lib = import (nixpkgs + "/lib");
  check = import ./check.nix { inherit lib; };

  # One package set for all instances of a flake: it is the largest part of what an evaluation needs.
  packages = lib.genAttrs [ "x86_64-linux" ] import';
  import' =
    system:
    import nixpkgs {
      localSystem = { inherit system; };
      config = { };
      overlays = [ ];
    };

  # For whoever sets `nixpkgs.config` or another platform, one of their own, which NixOS makes.
  sharedPackages =
    {
      config,
      lib,
      options,
      ...
    }:
    {
      nixpkgs.pkgs = lib.mkIf (
        options.nixpkgs.config.highestPrio >= (lib.mkOptionDefault { }).priority && packages ? ${config.nixpkgs.hostPlatform.system}
      ) (lib.mkDefault packages.${config.nixpkgs.hostPlatform.system});
    };

  # A NixOS module as an instance: `seeds.<name> = seed.lib.mkSeed { … }`.
  mkSeed =
    {
      # One DNS label: the host name, and the first part of <name>.<namespace>.<domain>.
      name,
      # A NixOS module: a path, a function or an attribute set.
      module,
      system ? "x86_64-linux",
      # More of them.
      extraModules ? [ ],
    }:
    let
      # What is no file, errors would place in this one.
      named = given: if lib.isAttrs given || lib.isFunction given then lib.setDefaultModuleLocation "seeds.${name}" given else given;
      own = map named ([ module ] ++ extraModules);

      # The whole instance as one module: for a NixOS test, or for a machine that is not Seed's.
      whole = {
        imports = [ ./instance ] ++ lib.optional (sopsNix != null) (sopsNix + "/modules/sops") ++ own;
        seed.name = name;
      };

      instance = import (nixpkgs + "/nixos/lib/eval-config.nix") {
        inherit lib;
        # Set below, where a tenant can override it.
        system = null;
        modules = [
          whole
          { nixpkgs.hostPlatform = lib.mkDefault system; }
          sharedPackages
        ];
      };
      inherit (instance) config;
    in
    {
      # What the host must know before it builds anything. Reading it checks the whole configuration and builds nothing.
      meta = check {
        what = "seeds.${name}";
        inherit instance;
        modules = own;
        modulesPath = toString (nixpkgs + "/nixos/modules");
      } config.seed.manifest.meta;

      # The system: a folder with `kernel`, `initrd`, `init` and `kernel-params`.
      toplevel = config.system.build.toplevel;

      inherit config;
      module = whole;
    };
in
{
  inherit mkSeed;
}
