# The tenant's side: what `seed.*` means inside of an instance. `seed.lib.mkSeed` imports it.
{
  imports = [
    ./options.nix
    ./assertions.nix
    ./guest.nix
    ./trimmed.nix
    ./network.nix
    ./storage.nix
    ./access.nix
    ./tpm.nix
    ./acme.nix
    ./shoot.nix
  ];
}
