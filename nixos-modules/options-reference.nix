# Makes OPTIONS.md, the reference of every option, from the options themselves. It needs nixpkgs' library, no packages and no build:
#
#   nix eval --raw .#lib.optionsReference > nixos-modules/OPTIONS.md
#
# tests/nixos/nixpkgs/options-reference.nix and `nix flake check` say when the file is older than the options.
{ lib }:
let
  # The modules' own options, and nothing of NixOS: what they set is not looked at.
  of =
    options: prefix:
    let
      evaluated = lib.evalModules {
        modules = [
          options
          {
            _module.check = false;
            # Defaults that are packages say so in words.
            _module.args.pkgs = { };
          }
        ];
      };
      listed = lib.optionAttrSetToDocList (lib.getAttrFromPath prefix evaluated.options);
    in
    lib.filter (option: option.visible && !option.internal) listed;

  # A value is Nix code, or a text that says what it is.
  block =
    name: value:
    let
      text = lib.removeSuffix "\n" value.text;
      indented = lib.concatMapStringsSep "\n" (line: "  ${line}") (lib.splitString "\n" text);
    in
    if value._type == "literalMD" then
      "- ${name}: ${lib.removePrefix "  " indented}"
    else if lib.hasInfix "\n" text then
      "- ${name}:\n\n  ```nix\n${indented}\n  ```"
    else
      "- ${name}: `${text}`";

  entry =
    option:
    lib.concatStringsSep "\n" (
      [
        "### `${option.name}`"
        ""
        # The manual's markup for a name of an option is another than Markdown's.
        (lib.replaceStrings [ "{option}`" ] [ "`" ] (lib.removeSuffix "\n" option.description))
        ""
        "- Type: ${option.type}"
      ]
      ++ lib.optional (option ? default) (block "Default" option.default)
      ++ lib.optional (option ? example) (block "Example" option.example)
      ++ [ "" ]
    );

  lacks =
    option:
    lib.optional ((option.description or null) == null) "${option.name}: no description"
    ++ lib.optional (!option ? example) "${option.name}: no example";
in
rec {
  host = of ./host/options.nix [
    "services"
    "seed"
  ];
  instance = of ./instance/options.nix [ "seed" ];

  # What an option should say and does not. A switch, and a group of options, need no example.
  missing = lib.concatMap lacks (
    lib.filter (option: !lib.hasSuffix ".enable" option.name && !lib.hasPrefix "submodule" option.type) (host ++ instance)
  );

  markdown =
    ''
      # Options

      Made from the options by `nix eval --raw .#lib.optionsReference`: do not edit it, edit their descriptions.

      ## For hosts: `services.seed`

    ''
    + lib.concatMapStringsSep "\n" entry host
    + ''

      ## For instances: `seed`

    ''
    + lib.concatMapStringsSep "\n" entry instance;
}
