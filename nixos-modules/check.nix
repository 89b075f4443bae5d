# Checks the configuration of an instance as far as a mistake in it can be found without building: `check { … } value` is `value`, or an
# error that says what is wrong.
#
# - Every assertion, Seed's and those of NixOS.
# - Every option that the tenant's own modules set, to the bottom: the module system is lazy, and would otherwise find the wrong type of an
#   option, or two definitions that contradict each other, only when something reads it, which is to say when the system is built.
#
# What NixOS makes of it all, like the text of every unit and the derivations of every package, is left alone: that is the larger part of
# an evaluation, and a mistake in it is not the tenant's.
{ lib }:
let
  inherit (lib)
    all
    attrNames
    concatMap
    elem
    filter
    isAttrs
    isFunction
    isList
    isOption
    optional
    ;

  # What is not data: packages, functions, and sets of both, which are without end and partly broken on purpose.
  opaque =
    value:
    isFunction value
    || (isAttrs value && (value ? __functor || value ? _type || value ? extend || value ? callPackage || value.type or null == "derivation"));
  opaqueTypes = [
    "raw"
    "unspecified"
    "package"
    "pkgs"
    "attrs"
    "anything"
  ];

  # Every value in it. `depth` is for values that contain themselves.
  forced =
    depth: value:
    if depth == 0 || opaque value then
      true
    else if isList value then
      all (forced (depth - 1)) value
    else if isAttrs value then
      all (name: forced (depth - 1) value.${name}) (attrNames value)
    else
      builtins.seq value true;

  # The part of `value` that `definition` speaks of; `options` is what is declared at this place, or null below an option. A definition may
  # be wrapped in the properties of the module system.
  covered =
    options: definition: value:
    if definition._type or null == "if" then
      !definition.condition || covered options definition.content value
    else if definition._type or null == "merge" then
      all (one: covered options one value) definition.contents
    else if definition ? _type && definition ? content then
      covered options definition.content value
    else if opaque value || (isOption options && elem options.type.name opaqueTypes) then
      builtins.seq value true
    else if isAttrs value && isAttrs definition && !(opaque definition) then
      all (
        name:
        let
          below = if isOption options || !(isAttrs options) then null else options.${name} or null;
        in
        !(value ? ${name}) || covered below definition.${name} value.${name}
      ) (attrNames definition)
    else if isAttrs value then
      # Written in some other way than it came to be, as `"1Gi"` became a volume.
      forced 3 value
    else
      forced 8 value;

  # What a module sets, itself and by what it imports.
  definitions =
    arguments: module:
    let
      given = if isFunction module || isAttrs module then module else import module;
      made = if isFunction given then given (wanted given) else given;
      # Only what it names: one that names an argument which does not exist has been refused by now.
      wanted = function: lib.mapAttrs (name: _: arguments.${name}) (lib.functionArgs function);
      plain = removeAttrs made [
        "_class"
        "_file"
        "key"
        "disabledModules"
        "imports"
        "options"
        "meta"
        "freeformType"
        "require"
      ];
      own = if made ? config || made ? options then optional (made ? config) made.config else [ plain ];
    in
    # A module may be one condition, or several modules merged.
    if made ? _type then [ made ] else own ++ concatMap (definitions arguments) (made.imports or [ ]);
in
{
  what,
  # Of eval-config.nix.
  instance,
  # The tenant's own.
  modules,
  # Where NixOS keeps its modules.
  modulesPath,
}:
value:
let
  inherit (instance) config options;
  failed = map (one: one.message) (filter (one: !one.assertion) config.assertions);

  arguments = instance._module.args // {
    inherit
      config
      options
      lib
      modulesPath
      ;
  };
  typed = all (module: all (one: covered options one config) (definitions arguments module)) modules;

  plural = if builtins.length failed == 1 then "1 problem" else "${toString (builtins.length failed)} problems";
in
if failed != [ ] then
  throw "\n${what} has ${plural}:\n${lib.concatMapStrings (message: "- ${message}\n") failed}"
else
  builtins.seq typed value
