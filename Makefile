# What a person and CI run. `make help` lists the targets.

# A go from 1.21 on, wherever it is installed, fetches the toolchain that go.mod names.
GO = $(shell sh integration/install.sh --go || echo go)
export GOTOOLCHAIN = auto

VERSION = $(shell sh contrib/package/version.sh)
STATIC = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(or $(VERSION),unknown)'
PROGRAMS = bangerd banger banger-agent
SCRIPTS = integration/install.sh integration/run.sh integration/screenshot.sh integration/lab.sh .ci/run \
	$(wildcard contrib/package/*.sh contrib/package/deb/* contrib/package/rpm/*)

# Of the integration tests: make integration TESTFLAGS='-run TestCrash -crash.rounds 500'.
TESTFLAGS =

# Of the lab: make test-lab STEPS='install tour'; none are all of them.
STEPS =

.PHONY: all build run test test-long test-lab fuzz unit integration lint bench image man \
	completions copyright deb rpm install screenshot clean help install-deps test-deps bench-deps

all: build

help:
	@echo 'make run           install, build, mount, boot a VM named hello; Ctrl-C unmounts and leaves it running'
	@echo 'make build         bin/bangerd, bin/banger and bin/banger-agent'
	@echo 'make test          everything proven: unit tests, then the suite on fake and real VMs'
	@echo 'make test-lab      a host with KVM, vsock, cgroup v2 and systemd, made by banger, and what only it proves'
	@echo 'make test-long     the suite with what takes minutes: many bytes, a soak, and make fuzz'
	@echo 'make fuzz          all fuzz targets, 20 s each; FUZZTIME=5m for longer'
	@echo 'make lint          gofmt, vet, staticcheck, import rules, shell syntax'
	@echo 'make bench         ratios against the bare thing; TESTFLAGS="-report.only boot,exec" chooses parts'
	@echo 'make image         the built-in image, in .cache/image/builtin'
	@echo 'make man           the manual pages, in bin/man'
	@echo 'make deb rpm       the packages, bin/banger_VERSION_amd64.deb and bin/banger-VERSION-1.x86_64.rpm'
	@echo 'make install       into PREFIX, /usr/local, below DESTDIR; a package is better: it can be removed'
	@echo "make screenshot    the README's pictures of banger top, docs/top.svg and docs/top-vm.svg"
	@echo 'make install-deps  what is missing of Debian packages and Go'
	@echo 'make clean         removes bin and .cache'

install-deps:
	@sh integration/install.sh

build: install-deps
	@mkdir -p bin
	@set -e; for p in $(PROGRAMS); do $(STATIC) -o bin/$$p ./cmd/$$p; done

image: build
	@$(GO) run ./cmd/internal/mkimage

run: build
	@sh integration/run.sh

test: unit integration

# Also what takes minutes each.
test-long:
	$(MAKE) integration TESTFLAGS='-long -timeout 90m'
	$(MAKE) fuzz

# A host in a VM of banger's. All of it is new but the Debian, which .cache/lab keeps.
test-lab: test-deps image deb
	@GO='$(GO)' sh integration/lab.sh $(STEPS)

# Of each target. go test keeps an input that fails in testdata of its package.
FUZZTIME = 20s

fuzz: install-deps
	@grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | \
	while IFS=: read -r file target; do \
		echo "$${file%/*} $${target#func }"; \
		$(GO) test -fuzz "^$${target#func }\$$" -fuzztime $(FUZZTIME) -run '^$$' "$${file%/*}" </dev/null \
			|| exit; \
	done

test-deps:
	@sh integration/install.sh --tests

bench-deps:
	@sh integration/install.sh --bench

unit: test-deps image
	$(GO) test -race -p 2 $$($(GO) list ./... | grep -v '/integration')

integration: test-deps image
	$(GO) test -race -p 1 -parallel 2 -timeout 40m ./integration/... $(TESTFLAGS)

lint: install-deps
	@files=$$(gofmt=$$($(GO) env GOROOT)/bin/gofmt; $$gofmt -l .); \
		if [ -n "$$files" ]; then echo "not formatted:"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) run ./cmd/internal/importcheck ./...
	@set -e; for s in $(SCRIPTS); do sh -n $$s; done
	@set -e; for s in integration/lab/*.sh integration/lab/steps/*.sh; do bash -n $$s; done

bench: bench-deps image
	$(GO) test ./integration -run 'TestReport$$' -report -timeout 3h -v $(TESTFLAGS)

# The manual pages, in bin/man.
man: install-deps
	@mkdir -p bin/man
	@set -e; for page in files:banger.5 banger.1:banger.1 bangerd.8:bangerd.8; do \
		$(GO) tool go-md2man -in docs/$${page%%:*}.md -out bin/man/$${page#*:}; done

# For the shells' completion of banger's commands, in bin/completions.
completions: build
	@mkdir -p bin/completions
	@set -e; for shell in bash zsh fish; do bin/banger completion $$shell >bin/completions/$$shell; done

copyright: build
	@GO='$(GO)' sh contrib/package/copyright.sh $(addprefix bin/,$(PROGRAMS)) >bin/copyright

PREFIX = /usr/local
DESTDIR =

install: build man completions
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' sh contrib/package/install.sh

deb rpm: build man completions copyright
	@GO='$(GO)' VERSION='$(VERSION)' sh contrib/package/package.sh $@

# The pictures of banger top in the README.
screenshot: build test-deps image
	@GO='$(GO)' sh integration/screenshot.sh

clean:
	rm -rf bin .cache
