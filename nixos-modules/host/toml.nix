# A text of TOML: keys, then sections of keys. What the agent's configuration needs, and no more.
{ lib }:
settings:
let
  inherit (lib) concatStringsSep filterAttrs mapAttrsToList;
  # JSON's texts, numbers, truth values and lists are TOML's.
  lines = attrs: mapAttrsToList (key: value: "${key} = ${builtins.toJSON value}") attrs;
  isSection = _: builtins.isAttrs;
  section = name: attrs: [
    ""
    "[${name}]"
  ] ++ lines attrs;
in
concatStringsSep "\n" (
  [ "# Written by the NixOS module services.seed: change it there." ]
  ++ lines (filterAttrs (name: value: !isSection name value) settings)
  ++ lib.concatLists (mapAttrsToList section (filterAttrs isSection settings))
)
+ "\n"
