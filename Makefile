# `make lab` and `make test` do all their own set-up; nothing but Python 3.11+ and make is needed.
# make.py does the work, on every system: without make, `python make.py lab` is the same.

PYTHON ?= python3
TARGETS := help lab workbook run test test-thorough test-real notebooks playground images site book \
    dist serve tiny tiny-quick tiny-history tiny-int4 bench lint format clean

.DEFAULT_GOAL := help
.PHONY: $(TARGETS)
.NOTPARALLEL:

$(TARGETS):
	@$(PYTHON) make.py $@
