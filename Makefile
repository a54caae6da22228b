# make test    installs what the tests use, builds, runs every test of the workspace
# make static  builds the static program as deploy/Dockerfile does, and runs it in an empty root
# make lint    format, clippy, docs, licences and sources of dependencies, unused dependencies
# make bench   the benchmarks: one node against docker-registry and nginx, two nodes against TLS,
#              whole clusters (as root), look-ups on the ring

.PHONY: test static lint bench test-tools lint-tools

test: test-tools
	cargo build --locked --workspace --bins --tests --examples
	@if cargo nextest --version >/dev/null 2>&1; then \
		echo cargo nextest run --locked --workspace; \
		cargo nextest run --locked --workspace; \
	else \
		echo cargo test --locked --workspace -- --test-threads=2; \
		cargo test --locked --workspace -- --test-threads=2; \
	fi

static: test-tools
	scripts/check-static

test-tools:
	scripts/install-test-tools

lint: lint-tools
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
	cargo deny --locked check bans licenses sources
	cargo machete

lint-tools:
	@for tool in cargo-deny cargo-machete; do \
		if ! command -v $$tool >/dev/null; then \
			echo "$$tool is missing: cargo install --locked $$tool"; \
			cargo install --locked $$tool || exit 1; \
		fi; \
	done

bench: test-tools
	cargo build --locked --release -p millrace
	cargo bench --locked -p millrace-cluster-tests
	cargo bench --locked -p millrace --bench placement
