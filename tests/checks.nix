# The checks of the flake. They are found, not listed: each file of tests/vm is `vm-<name>`, each folder of templates `template-<name>`,
# each file of tests/nixos/{always,nixpkgs} `nixos-<name>`.
{
  self,
  pkgs,
  inputs,
}:
let
  inherit (pkgs) lib;
  top = ../.;

  # The names of a folder's Nix files, without their end.
  nixFiles =
    folder:
    lib.concatLists (
      lib.mapAttrsToList (
        name: kind: lib.optional (kind == "regular" && lib.hasSuffix ".nix" name) (lib.removeSuffix ".nix" name)
      ) (builtins.readDir folder)
    );
  named = prefix: names: make: lib.listToAttrs (map (name: lib.nameValuePair "${prefix}-${name}" (make name)) names);

  # A check that is over when it is evaluated.
  said = name: text: pkgs.writeText name (builtins.unsafeDiscardStringContext text);

  vms = named "vm" (nixFiles ./vm) (
    name: pkgs.testers.runNixOSTest (import (./vm + "/${name}.nix") { inherit (self.lib) mkSeed; })
  );

  # A template is whole if its outputs can be read: of instances the metas, which checks their configurations; of hosts the systems.
  template =
    name:
    let
      flake = import (top + "/templates/${name}/flake.nix");
      given = {
        self = outputs;
        seed = self;
      } // inputs;
      # The inputs of `minimal` are tarballs that nobody has to have to read its metas.
      wanted = lib.mapAttrs (input: _: given.${input} or "/nowhere/${input}") (lib.functionArgs flake.outputs);
      outputs = flake.outputs (given // wanted);
    in
    said "template-${name}" (
      builtins.toJSON {
        seeds = lib.mapAttrs (_: seed: seed.meta) (outputs.seeds or { });
        hosts = lib.mapAttrs (_: host: host.config.system.build.toplevel.drvPath) (outputs.nixosConfigurations or { });
      }
    );
  templates = lib.attrNames (lib.filterAttrs (_: kind: kind == "directory") (builtins.readDir (top + "/templates")));

  # What the cases of a file say, but for those that must fail: their words are looked at by `cargo test --test nixos`.
  cases =
    folder: name:
    let
      results =
        (import ./nixos/run.nix {
          file = ./nixos + "/${folder}/${name}.nix";
          nixpkgs = inputs.nixpkgs.outPath;
          sopsNix = inputs.sops-nix.outPath;
        }).results;
      wrong = lib.attrNames (lib.filterAttrs (_: case: !(case ? throws) && case.got or null != case.expected) results);
    in
    if wrong == [ ] then
      said "nixos-${name}" "${toString (lib.length (lib.attrNames results))} cases"
    else
      throw "tests/nixos/${folder}/${name}.nix: not as expected: ${lib.concatStringsSep ", " wrong}";
in
{
  package = self.packages.${pkgs.system}.seed;

  format = pkgs.runCommandLocal "format" { nativeBuildInputs = [ pkgs.nixfmt-rfc-style ]; } ''
    find ${
      lib.fileset.toSource {
        root = top;
        # What others have published stands as they wrote it, and the smallest template is laid out to be read.
        fileset = lib.fileset.difference (lib.fileset.fileFilter (file: file.hasExt "nix") top) (
          lib.fileset.unions [
            ./nixos/published
            ../templates/minimal
          ]
        );
      }
    } -name '*.nix' -exec nixfmt --width=140 --check {} +
    touch $out
  '';
}
// vms
// named "template" templates template
// named "nixos" (nixFiles ./nixos/always) (cases "always")
// named "nixos" (nixFiles ./nixos/nixpkgs) (cases "nixpkgs")
