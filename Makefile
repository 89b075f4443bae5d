# What a person does with this tree. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

CARGO ?= cargo
MINUTES ?= 1
FUZZ_SECONDS ?= 6

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
test: test-tools fuzz-tools ## Format, lints, and every test, the stories on a real systemd included
	@mkdir -p target; date +%s >target/.test-began
	$(CARGO) fmt --check
	@echo "==> lints, and beside them the machines of the stories (kept in a cache; the first time takes a minute or two)"
	@tests/host/roots & code=0; $(MAKE) --no-print-directory lint || code=$$?; wait $$!; exit $$code
	$(CARGO) test --locked --no-fail-fast $(ARGS)
ifeq ($(ARGS),)
	@echo "==> the parsers under libFuzzer, $(FUZZ_SECONDS) seconds each"
	@FUZZ_SEED=1 fuzz/run -s $(FUZZ_SECONDS)
endif
	@took=$$(($$(date +%s) - $$(cat target/.test-began))); echo "==> all of it passed in $$((took / 60)) min $$((took % 60)) s"; \
	  if ((took > 1500)); then echo "that is more than 25 minutes: 30 is the most that it may take"; fi

.PHONY: fuzz
fuzz: fuzz-tools ## Look for inputs that break a parser: MINUTES=1 each, ARGS='dns jws' for some of them
	@fuzz/run -s $$((60 * $(MINUTES))) $(ARGS)

.PHONY: lint
lint: tools ## clippy, warnings are errors
	$(CARGO) clippy --locked --all-targets -- -D warnings

.PHONY: bench
bench: ## Measure against the goals, and print a table
	@.ci/tools $(TEST_TOOLS) valgrind dnsperf
	@tests/host/roots
	$(CARGO) bench --locked -- $(ARGS)

.PHONY: build
build: tools ## The program, optimized: target/release/seed
	$(CARGO) build --locked --release

.PHONY: tools
tools: # What building needs of a fresh Debian; installs what is missing
	@.ci/tools

# strace counts syncs, and kills at each of them; a TPM for the script that keeps a key in it; a CA to test with, and the clients that tenants have; DNS servers and clients of others; the shells that completion is for.
TEST_TOOLS := strace swtpm tpm2_nvread:tpm2-tools pebble lego certbot caddy openssl curl haproxy dig:bind9-dnsutils delv:bind9-dnsutils kdig:knot-dnsutils knotd:knot unbound zsh fish

# libFuzzer is C++.
.PHONY: fuzz-tools
fuzz-tools:
	@.ci/tools g++

.PHONY: test-tools
test-tools:
	@.ci/tools $(TEST_TOOLS)
