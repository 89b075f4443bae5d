# The tables that Nix and Rust share.
{ project, ... }:
let
  sizes = builtins.fromJSON (builtins.readFile (project + "/vmconfigs/sizes.json"));
in
{
  "sizes are the published ones" = {
    expr = builtins.mapAttrs (_: size: "${toString size.vcpus}/${toString size.memoryMiB}") sizes;
    expected = {
      xs = "1/512";
      s = "1/1024";
      m = "2/2048";
      l = "4/4096";
      xl = "8/8192";
    };
  };
}
