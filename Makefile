# Aliases for nox sessions. `make` alone explains them. ARGS=... is handed to the session: make bench ARGS="--only 1.1"
.DEFAULT_GOAL := help
.PHONY: help report verify reproduce paper test bench quality lint types check lock environment clean
SESSION = @.venv/bin/python -m nox --session
REST = $(if $(ARGS),-- $(ARGS))
help:  ## Explain the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
report: environment  ## Measure this machine and write the report in Chinese and English into results/
	$(SESSION) report $(REST)
verify: environment  ## Work every number of the latest report (or the paper) out again from its ledger; ARGS=FOLDER
	$(SESSION) verify $(REST)
paper: environment  ## Render the committed run in paper/ again, byte for byte; ARGS="--from RUN" takes a run over
	$(SESSION) paper $(REST)
reproduce: environment  ## Measure this machine and hold the run against the paper's, claim by claim
	$(SESSION) reproduce $(REST)
test: environment  ## Run the tests that need no GPU, with coverage
	$(SESSION) tests $(REST)
bench: environment  ## Measure only; ARGS="--only 1.1 --model FOLDER" chooses
	$(SESSION) bench $(REST)
quality: environment  ## Count lines, functions and complexity; ARGS=PATH measures another tree
	$(SESSION) quality $(REST)
lint: environment  ## Check with ruff: all rules, and the format
	$(SESSION) lint $(REST)
types: environment  ## Check the types with mypy, strictly
	$(SESSION) types $(REST)
check: environment  ## Everything that must be green before a commit: lint, types, test
	$(SESSION) lint types tests
lock: environment  ## Remake the pinned locks from pyproject.toml; ARGS=--upgrade takes newer versions
	$(SESSION) lock $(REST)
environment:  ## Make .venv and bring it in line with the locks; every target above does this first
	@sh tools/environment.sh
clean:  ## Remove .venv, caches and build leftovers; results/ stays
	rm -rf .venv .nox .coverage .hypothesis .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
