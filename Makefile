# What a person does with this tree. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

CARGO ?= cargo
# Tests may unwrap, that is how they fail; and they meet the machine.
TESTS_MAY := $(addprefix -A clippy::,unwrap_used disallowed_methods disallowed_types print_stdout print_stderr exit)

.PHONY: help
help: ## Show this list
	@echo "Seed: git push a NixOS module, get a microVM"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo CHECK=1 ends when the page was fetched; make test ARGS='--test floors' runs a part of the tests"
	@echo "  make bench ARGS='ssh git' measures some groups of rows"

.PHONY: demo
demo: tools ## See it happen: a host comes up, a repository is pushed, a page answers
	@tests/host/demo

.PHONY: test
test: test-tools ## Format, lints, and every test, the stories on a real systemd included
	$(CARGO) fmt --check
	@$(MAKE) --no-print-directory lint
	@echo "==> the machines of the stories (kept in a cache; the first time takes a minute or two)"
	tests/host/roots
	$(CARGO) test --locked --no-fail-fast $(ARGS)

.PHONY: lint
lint: tools ## clippy, warnings are errors
	$(CARGO) clippy --locked --lib --bins -- -D warnings
	$(CARGO) clippy --locked --all-targets -- -D warnings $(TESTS_MAY)

.PHONY: bench
bench: ## Measure against the goals, and print a table
	@.ci/tools $(TEST_TOOLS) valgrind dnsperf knotd:knot
	@tests/host/roots
	$(CARGO) bench --locked -- $(ARGS)

.PHONY: build
build: tools ## The program, optimized: target/release/seed
	$(CARGO) build --locked --release

.PHONY: tools
tools: # What building needs of a fresh Debian; installs what is missing
	@.ci/tools

# strace counts syncs, and kills at each of them; a CA to test with, and the clients that tenants have.
TEST_TOOLS := strace pebble lego certbot caddy openssl curl dig:bind9-dnsutils delv:bind9-dnsutils

.PHONY: test-tools
test-tools:
	@.ci/tools $(TEST_TOOLS)
