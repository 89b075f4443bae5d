# `services.seed`: turns a NixOS machine into a Seed host.
#
# options.nix says what can be set, settings.nix makes the agent's configuration of it, and the others make a host around that.
{
  imports = [
    ./options.nix
    ./settings.nix
    ./services.nix
    ./network.nix
    ./builds.nix
    ./assertions.nix
  ];
}
