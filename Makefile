# Two commands matter: `make demo` and `make test`. Both set up what a fresh Debian or Ubuntu lacks.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(CURDIR)/target
TRIPLE := x86_64-unknown-linux-gnu
# Static, so that the same file runs in any guest image. --target keeps build scripts and macros out of it.
STATIC := RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --profile guest --target $(TRIPLE)
# A mirror of the distribution for the workload image, where its own servers cannot be reached. The Debian image is
# Debian everywhere: DEBIAN_MIRROR, where the distribution is another.
export MIRROR ?=
export DEBIAN_MIRROR ?=
COUNT ?= 300
SEED ?= 1
# What the predictor is trained on; tests/recorded/collect is what the shipped weights are made of.
DATA ?= $(CARGO_TARGET_DIR)/collect

.PHONY: help setup build image bundle image-debian snippets workload image-host deb test-deb demo test bench spikes fleet lab lab-smoke collect train lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## installs missing packages, fetches the guest kernel, builds the vsock device
	@images/setup.sh

build: setup ## the workspace, for tests
	@echo "==> building the workspace"
	@cargo build --quiet --workspace --all-targets

image: setup ## the guest image with the agent baked in
	@echo "==> building the guest image"
	@$(STATIC) -p ballast-guest --bin ballast-guest
	@$(STATIC) -p ballast-tests --no-default-features --bin ballast-testd
	@images/build-initramfs.sh

bundle: setup ## the agent and its unit as one archive for any image builder: target/guest/ballast-guest.tar
	@$(STATIC) -p ballast-guest --bin ballast-guest
	@images/bundle.sh

image-debian: bundle ## a Debian 12 with the agent that boots by itself: target/guest/debian.qcow2; cached
	@images/build-debian.sh

snippets: image-debian ## tries images/snippets with the tools they are for, in throw-away Debian trees; needs root
	@images/snippets/check.sh

workload: setup ## the disks of real workloads (redis, nginx, postgresql, gcc, java) for test guests; cached
	@images/build-workload.sh

image-host: image ## the same with the host agent in it too, for tests of AF_VSOCK inside one guest
	@$(STATIC) -p ballast-host --no-default-features --bin ballast-host
	@images/build-initramfs.sh

deb: setup ## Debian packages of both agents, target/debian/*.deb
	@images/setup.sh deb
	@echo "==> building the packages"
	@cargo build --quiet --release -p ballast-host
	@$(STATIC) -p ballast-guest --bin ballast-guest
	@scripts/deb.sh

test-deb: deb image ## installs, upgrades, removes and purges them in a clean Debian tree
	@images/test-deb.sh

demo: image ## the four arms on real guests, one table, target/demo/summary.json
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" demo

bench: image ## times and sizes, target/bench/summary.json
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" bench

spikes: image ## random bursts against the pair; COUNT=1000 SEED=1, target/spikes/summary.json
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" spikes --count $(COUNT) --seed $(SEED)

fleet: ## a thousand simulated VMs around a real daemon: time to an order, CPU, memory; target/fleet/summary.json
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" fleet

lab: image workload ## laws against workloads, 45 minutes: target/lab/{report.html,summary.json,summary.csv}; goes on where it stopped
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" run --suite quick --within 44m

lab-smoke: image workload ## the same in under 10 minutes, with fewer laws: target/lab-smoke
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" run --suite smoke --repetitions 1 --no-oracle --within 8m \
		--arms free-page-reporting,proxmox,ballast --out "$$CARGO_TARGET_DIR/lab-smoke"

collect: image workload ## data for the predictor, 40 minutes: target/collect/{rows.jsonl,manifest.json,CARD.md}; goes on where it stopped
	@echo "==> building the host agent and the lab"
	@cargo build --quiet --release -p ballast-host -p ballast-tests
	@"$$CARGO_TARGET_DIR/release/ballast-lab" collect

train: setup ## the predictor's weights from DATA=target/collect; scores in target/predictor/{report.html,summary.json}
	@echo "==> building the host agent"
	@cargo build --quiet --release -p ballast-host
	@"$$CARGO_TARGET_DIR/release/ballast-host" train --data "$(DATA)" --out host-agent/predictor/weights/ballast.model \
		--report "$$CARGO_TARGET_DIR/predictor"

lint: setup ## formatting and clippy
	@echo "==> checking formatting and lints"
	@cargo fmt --all --check
	@cargo clippy --quiet --workspace --all-targets -- -D warnings

test: image-host image-debian workload deb lint build ## every test, the ones on real guests included
	@scripts/test.sh

clean: ## removes everything that was built or fetched
	@rm -rf "$$CARGO_TARGET_DIR"
