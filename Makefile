# overlayd: a bare `make` says what there is.
#
# Settings, as in `make fuzz FUZZTIME=5m`:
#   BENCHTIME  of each micro-benchmark (1s)     BENCH     which of them, a pattern (.)
#   COSTTIME   of each one of bench-costs (300ms), which has six rounds
#   FUZZTIME   of each fuzz target (20s)        FUZZ      which of them, a pattern (.)
#   SOAKTIME   of the soak, in seconds (600)

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Tests, benchmarks and labs share two cores and the kernel's names: never two at a time.
.NOTPARALLEL:
# sudo takes the usual place of Go off the PATH.
export PATH := $(PATH):/usr/local/go/bin

GO        ?= go
# The commit goes into the build information too, unless there is no git, no commit, or git refuses the
# checkout because it belongs to another user: then go build would fail.
STAMP     := -buildvcs=$(if $(shell git rev-parse --verify -q HEAD 2>/dev/null),true,false)
BENCHTIME ?= 1s
BENCH     ?= .
COSTTIME  ?= 300ms
FUZZTIME  ?= 20s
FUZZ      ?= .
SOAKTIME  ?= 600

MODULE := github.com/overlayd/overlayd
# Packages that need neither root nor Linux, tested under the race detector too.
PURE   := ./dataplane/... ./controlplane/...
# Packages whose tests make network namespaces: one package at a time, or they disturb each other.
NETNS  := ./vtep/... ./bench/... ./cmd/...
# Programs that check this repository. The leading dot keeps them out of ./... (see .ci/layout/doc.go).
CHECKS := ./.ci/layout ./.ci/runner
# The root of the .proto files; what they import is found from here.
PROTO  := controlplane/api

need-root = if [ "$$(id -u)" != 0 ]; then echo 'make $@ makes network namespaces and devices, which needs root; run: sudo make $@' >&2; exit 1; fi

# $(call protoc,DIR) generates the Go code of all .proto files below DIR, with the plugins of go.mod.
protoc = protoc -I $(PROTO) \
	--plugin=protoc-gen-go="$$($(GO) tool -n protoc-gen-go)" --go_out=$(1) --go_opt=module=$(MODULE) \
	--plugin=protoc-gen-connect-go="$$($(GO) tool -n protoc-gen-connect-go)" --connect-go_out=$(1) --connect-go_opt=module=$(MODULE),simple \
	$$(find $(PROTO) -name '*.proto' | sort)

.PHONY: help
help: ## say what can be made
	@echo 'overlayd: userspace VXLAN overlay. Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build bin/overlayd and bin/overlayctl
	CGO_ENABLED=0 $(GO) build -trimpath $(STAMP) -o bin/ ./cmd/overlayd ./cmd/overlayctl

.PHONY: lab
lab: build ## a cluster of five hosts with containers that talk; its leader is killed meanwhile (root)
	@$(need-root)
	@exec bin/overlayctl lab run cluster

# Allocations are counted and assembly is timed only without the race detector, so the pure packages
# run both ways. Without root, tests that need namespaces skip themselves, and the runner says so in
# its last line; with CI=true a test that skips is a failure.
.PHONY: test
test: ## run all tests (root for those in network namespaces)
	@passes=('-count=1 -timeout 5m $(PURE) $(CHECKS)' '-count=1 -p 1 -timeout 15m $(NETNS)'); \
	if [ '$(CI)' = true ] || command -v "$$($(GO) env CC)" >/dev/null; then \
		passes=('-count=1 -race -timeout 8m $(PURE)' "$${passes[@]}"); \
	else \
		echo 'left out: the race detector, which needs a C compiler; install gcc'; \
	fi; \
	$(GO) run ./.ci/runner $(if $(filter true,$(CI)),-strict) -- "$${passes[@]}"

.PHONY: bench
bench: build ## compare with the kernel's VXLAN side by side, write bench.json (root)
	@$(need-root)
	@exec ./bin/overlayctl bench --json bench.json

.PHONY: bench-micro
bench-micro: ## run the Go benchmarks of the packet path and the control plane: time and allocations
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem -p 1 $(PURE)

# What the kernel does for each step of the packet path, one package after the other, or they would measure each other.
.PHONY: bench-costs
bench-costs: ## measure what each system call of the packet path costs, in some two minutes (root)
	@$(need-root)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(COSTTIME) -count 6 -timeout 30m -p 1 ./vtep/tap ./vtep/underlay ./vtep/inject ./vtep/poll ./vtep/fastpath

.PHONY: lint lint-format lint-vet lint-staticcheck lint-layout lint-generated
lint: lint-format lint-vet lint-staticcheck lint-layout lint-generated ## check format, vet, staticcheck, structure, generated code

lint-format:
	@bad=$$(find . \( -path ./.git -o -path ./vendor \) -prune -o -name '*.go' -type f -print0 | xargs -0r gofmt -l); \
	if [ -n "$$bad" ]; then printf '%s: not formatted; run gofmt -w on it\n' $$bad >&2; exit 1; fi

lint-vet:
	$(GO) vet ./... $(CHECKS)
	GOOS=darwin $(GO) vet ./dataplane/...
	GOARCH=arm64 $(GO) vet ./dataplane/...

lint-staticcheck:
	$(GO) tool staticcheck ./... $(CHECKS)

lint-layout:
	$(GO) run ./.ci/layout

# The version of protoc stands in what it generates and is all that may differ.
lint-generated:
	@if ! command -v protoc >/dev/null; then \
		echo 'left out: whether generated code is up to date, which needs protoc; install protobuf-compiler and libprotobuf-dev'; exit 0; \
	fi; \
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call protoc,"$$fresh"); \
	list() { (cd "$$1" && find $(PROTO) -name '*.pb.go' -o -name '*.connect.go') | sort; }; \
	diff -u --label committed --label generated <(list .) <(list "$$fresh") || bad=1; \
	for f in $$(list "$$fresh"); do \
		[ ! -f "$$f" ] || diff -u -I '^// 	protoc  ' --label "$$f" --label generated "$$f" "$$fresh/$$f" || bad=1; \
	done; \
	if [ -n "$${bad-}" ]; then echo 'generated code is not what the .proto files say; run make generate' >&2; exit 1; fi

.PHONY: generate
generate: ## generate Go code from the .proto files (needs protoc)
	@command -v protoc >/dev/null || { echo 'make generate needs protoc; install protobuf-compiler and libprotobuf-dev' >&2; exit 1; }
	$(call protoc,.)

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME=20s in turn
	@targets=$$(grep -rHoE '^func Fuzz\w+' --include='*_test.go' cmd dataplane controlplane vtep bench | sed 's/func //' | grep -E ':.*($(FUZZ))' | sort) || { \
		echo "no fuzz target matches '$(FUZZ)'" >&2; exit 1; }; \
	for t in $$targets; do \
		echo "# $${t##*:} in $$(dirname "$$t")"; \
		$(GO) test -run '^$$' -fuzz "^$${t##*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 2s "./$$(dirname "$$t")"; \
	done

.PHONY: soak
soak: ## run the long tests of the control plane, then the namespace tests under the race detector for SOAKTIME=600 seconds (root)
	@$(need-root)
	OVERLAYD_SOAK=200 GOMEMLIMIT=17GiB $(GO) test -count=1 -p 1 -v -timeout 150m -run 'Linearizable|Convergence|Simulation' ./controlplane/...
	OVERLAYD_SOAK=1 $(GO) test -count=1 -v -timeout 30m -run 'Cluster|MTU|NarrowHops|ProbingCost' ./bench/interop
	@round=0; while [ $$round = 0 ] || [ $$SECONDS -lt $(SOAKTIME) ]; do \
		round=$$((round + 1)); echo "# round $$round, $$SECONDS s of $(SOAKTIME) s"; \
		$(GO) test -race -count=1 -p 1 -timeout 30m $(NETNS); \
	done

.PHONY: clean
clean: ## remove what was built and measured here
	rm -rf bin bench.json
