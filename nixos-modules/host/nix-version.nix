# Whether a version of Nix is one without the hole that gives builders root (CVE-2026-39860), as the agent decides it too: fixed in these,
# and in every series after the last. Other series never were.
{ lib }:
let
  fixed = {
    "2.28" = "2.28.6";
    "2.29" = "2.29.3";
    "2.30" = "2.30.4";
    "2.31" = "2.31.4";
    "2.32" = "2.32.7";
    "2.33" = "2.33.4";
    "2.34" = "2.34.5";
  };
  # 2.35.0pre1 is 2.35.0 here.
  numbers = version: lib.head (builtins.match "([0-9]+(\\.[0-9]+)*).*" version);
in
{
  inherit fixed;
  isSafe =
    version:
    let
      series = lib.versions.majorMinor (numbers version);
    in
    if fixed ? ${series} then
      lib.versionAtLeast (numbers version) fixed.${series}
    else
      lib.versionOlder "2.34" series;
}
