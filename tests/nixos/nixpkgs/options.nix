# The options of an instance, by name; and which of them must be given.
{ lib, project, ... }:
let
  evaluated = lib.evalModules {
    modules = [
      (project + "/nixos-modules/instance/options.nix")
      {
        _module.check = false;
        _module.args.pkgs = { };
        seed.name = "web";
      }
    ];
  };
  all = lib.filter (option: !option.internal && lib.head option.loc == "seed") (lib.optionAttrSetToDocList evaluated.options);
  required = [
    "seed.name"
    "seed.connect.<name>.service"
    "seed.storage.<name>.size"
  ];
  lacking = field: map (option: option.name) (lib.filter (option: !(option ? ${field})) all);
in
{
  "each has a default, or must be given" = {
    expr = lib.sort lib.lessThan (lacking "default");
    expected = lib.sort lib.lessThan required;
  };
  "they are these" = {
    expr = lib.sort lib.lessThan (map (option: option.name) all);
    expected = [
      "seed.acme"
      "seed.connect"
      "seed.connect.<name>.port"
      "seed.connect.<name>.service"
      "seed.domains"
      "seed.expose"
      "seed.expose.<name>.enable"
      "seed.expose.<name>.port"
      "seed.expose.<name>.protocol"
      "seed.expose.<name>.proxyProtocol"
      "seed.name"
      "seed.rollout"
      "seed.shoot.enable"
      "seed.size"
      "seed.storage"
      "seed.storage.<name>.group"
      "seed.storage.<name>.mode"
      "seed.storage.<name>.mountPoint"
      "seed.storage.<name>.size"
      "seed.storage.<name>.user"
      "seed.tpm.enable"
    ];
  };
}
