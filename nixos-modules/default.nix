# The modules, by name: `default` and `host` for machines that run Seed, `instance` for what is pushed to them.
{
  default = ./host;
  host = ./host;
  instance = ./instance;
}
