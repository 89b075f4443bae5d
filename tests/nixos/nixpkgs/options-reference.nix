# The reference of all options is made from them, and none of them is without a word.
{ project, lib, ... }:
let
  reference = import (project + "/nixos-modules/options-reference.nix") { inherit lib; };
  # A message that can be read, instead of two texts of a thousand lines.
  written = builtins.readFile (project + "/nixos-modules/OPTIONS.md");
in
{
  "OPTIONS.md is as the options are" = {
    expr =
      if reference.markdown == written then
        "as they are"
      else
        "older than the options: run  nix eval --raw .#lib.optionsReference > nixos-modules/OPTIONS.md";
    expected = "as they are";
  };

  "every option has a description and an example" = {
    expr = reference.missing;
    expected = [ ];
  };

  "both sides are in it" = {
    expr = builtins.length reference.host > 30 && builtins.length reference.instance > 10;
    expected = true;
  };
}
