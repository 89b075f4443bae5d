# Runs the cases of one file of `always/` or `nixpkgs/`. Such a file is a function of the arguments below (it names those it uses, and
# `...`) and gives an attribute set of cases, each named by a sentence:
#
#   { expr; expected; }   `expr`, evaluated to the bottom, is `expected`
#   { expr; throws; }     evaluating `expr` fails, and what Nix says has every text of the list `throws`
{
  file,
  # A nixpkgs, or null where there is none.
  nixpkgs ? null,
  # A checkout of sops-nix, or null.
  sopsNix ? null,
}:
let
  cases = import file {
    project = ../..;
    inherit nixpkgs sopsNix;
    lib = import (nixpkgs + "/lib");
  };

  run =
    case:
    if case ? throws then
      { inherit (case) throws; }
    else
      let
        tried = builtins.tryEval (builtins.deepSeq case.expr case.expr);
      in
      { inherit (case) expected; } // (if tried.success then { got = tried.value; } else { });
in
{
  names = builtins.attrNames cases;
  results = builtins.mapAttrs (_: run) cases;
  # One by one, to hear what a failure says.
  exprs = builtins.mapAttrs (_: case: builtins.deepSeq case.expr true) cases;
}
