.DEFAULT_GOAL := help
WORKERS ?= 4
# 1 fails a run that leaves anything of its own in the kernel, 0 only says so.
STRICT ?= 1

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

up:  ## set everything up, start Insula and run the demo
	@INSULA_TARGET=up scripts/setup.sh
	@.venv/bin/insula up --detach
	@.venv/bin/insula demo

down:  ## stop everything that runs and leave nothing behind (data is kept)
	@.venv/bin/insula down --all

test:  ## all tests, in parallel, with the linters
	@INSULA_TARGET=test scripts/setup.sh tests
	@$(MAKE) --no-print-directory lint
	@folder=$$(mktemp -d /tmp/insula-test.XXXXXX) && trap 'rm -rf --one-file-system "$$folder"' EXIT && export INSULA_STRICT=$(STRICT) && \
		.venv/bin/pytest -q -n $(WORKERS) --dist worksteal --basetemp="$$folder/t" $(TESTS) || \
		{ echo "once more, alone: what failed beside others"; \
		.venv/bin/pytest -q --last-failed --last-failed-no-failures none --basetemp="$$folder/u" $(TESTS); }

lint:  ## ruff, mypy and the import ranks
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench:  ## measure against the real peers and the budgets
	@INSULA_TARGET=bench scripts/setup.sh tests
	.venv/bin/python -m bench $(BENCH)

lock:  ## resolve the dependencies again
	.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml --group dev -o requirements.lock

.PHONY: help up down test lint bench lock
