# Everything a checkout needs. No root rights, no running service: tests and demo start their own Valkey.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH   = $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test-quick bench-refresh-beside-stream setup demo test lint types wheel structure trace bench-online-retail bench-autoencoder bench-generator bench-ranker bench-quality bench-encode bench-policies bench-online faults concurrency fuzz messy bench-text bench-explain bench-compression bench-session bench-freshness stream-faults soak bench-stream clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(STAMP)  ## build .venv with the pinned dependencies (PYTHON=python3.12 picks another interpreter)

# torch goes first, by itself: it is by far the largest download, and once it is in place the rest
# resolves around it, whichever build (CPU, CUDA) the machine's pip is set to take.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'make setup: $(PYTHON) is missing or older than Python 3.11.' \
	        'Name a newer one: make setup PYTHON=python3.12' >&2; exit 1; }
	@echo 'Building $(VENV) (the first time takes minutes) …'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt $(TORCH)
	@$(PIP) install -c constraints.txt -e '.[dev,demo,explain,kafka,onnx,text]'
	@touch $@

demo: setup  ## run the demonstration: real purchases, embedding features, a refresh, point-in-time reads
	@$(BIN)/feast-embeddings demo

test: lint types  ## check style and types, then run every test with coverage
	@$(BIN)/python -m pytest -n 2 --durations=10 --cov --cov-report=term

QUICK = tests/laws/test_architecture.py tests/laws/test_structure.py tests/transformations tests/models/encoder \
        tests/models/evaluation tests/materialize/declare tests/materialize/files tests/materialize/ledger \
        tests/materialize/retrieval tests/materialize/stream/test_payloads.py tests/materialize/stream/test_source_laws.py

test-quick: setup  ## run the tests that need no feature repo: under two minutes
	@$(BIN)/python -m pytest -n 2 -q $(QUICK)

lint: setup  ## check style and formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: setup  ## check types, strictly
	@$(BIN)/mypy -p feast_embeddings

structure: setup  ## count modules, imports, circles, lines; AGAINST=REV puts another revision beside it
	@$(BIN)/python tests/laws/structure.py $(if $(AGAINST),--against '$(AGAINST)')

trace: setup  ## print the modules that one tick and one refresh run through
	@PYTHONPATH='$(CURDIR)/typings' $(BIN)/python tests/laws/touched.py

faults: setup  ## prove that 1,000 schedules of stopped, killed and sleeping jobs end alike (about 25 minutes)
	@$(BIN)/python benchmarks/faults.py

concurrency: setup  ## prove that 1,000 cutovers under eight reader processes never show a mixture
	@$(BIN)/python benchmarks/concurrency.py

messy: setup  ## prove that 2,000 tables of any types, units, zones and nulls are each served right or refused
	@$(BIN)/python benchmarks/messy.py

fuzz: setup  ## prove that 200,000 broken and whole messages are each applied or quarantined
	@$(BIN)/python benchmarks/fuzz.py

stream-faults: setup  ## prove that a stream whose workers are killed for two minutes loses nothing, bit for bit
	@$(BIN)/python benchmarks/stream_faults.py faults

soak: setup  ## prove that a stream's workers stay within their memory for 30 minutes
	@$(BIN)/python benchmarks/stream_faults.py soak --seconds 1800 --rate 400

bench-refresh-beside-stream: setup  ## measure how long clicks wait while their view is refreshed, and whether lag grows
	@$(BIN)/python -W ignore benchmarks/refresh_beside_stream.py

bench-stream: setup  ## measure clicks per second, and from click to vector: make bench-stream DATA=path/to/globo.parquet
	@test -n '$(DATA)' || { echo 'bench-stream: say where the clicks are, DATA=path/to/globo.parquet' >&2; exit 1; }
	@$(BIN)/python -W ignore benchmarks/stream.py --data '$(DATA)'

wheel: setup  ## build the wheel and the source archive into dist/
	@$(BIN)/python -m build --outdir dist

bench-quality: setup  ## measure ranking quality on MovieLens-1M: make bench-quality DATA=path/to/ml-1m
	@test -n '$(DATA)' || { echo 'bench-quality: say where the data is, DATA=path/to/ml-1m' >&2; exit 1; }
	@$(BIN)/python benchmarks/quality_ml1m.py --data '$(DATA)'

bench-encode: setup  ## measure encoding: batches, bf16, one request, one behavior more (DATA=path/to/ml-1m for its lengths)
	@$(BIN)/python benchmarks/encode.py $(if $(DATA),--data '$(DATA)')

bench-policies: setup  ## measure staleness, policies and behavior types: make bench-policies DATA=clicks.parquet TAOBAO=shop.parquet
	@test -n '$(DATA)$(TAOBAO)' || { echo 'bench-policies: say where the data is, DATA=… or TAOBAO=…' >&2; exit 1; }
	@test -z '$(DATA)' || $(BIN)/python benchmarks/policies.py --data '$(DATA)' --encoder '$(or $(ENCODER),.demo/globo_encoder)'
	@test -z '$(TAOBAO)' || $(BIN)/python benchmarks/taobao.py --data '$(TAOBAO)'

bench-online: setup  ## measure the online store beside stock Feast: writes, reads, bytes and memory (minutes)
	@$(BIN)/python benchmarks/online.py $(if $(MEMORY),--memory $(MEMORY))

bench-online-retail: setup  ## count what cleaning does to Online Retail's invoices: make bench-online-retail DATA=path
	@test -n '$(DATA)' || { echo 'bench-online-retail: say where the data is, DATA=path/to/parquet' >&2; exit 1; }
	@$(BIN)/python benchmarks/online_retail.py --data '$(DATA)'

bench-text: setup  ## measure what text does for cold items, and each modality: make bench-text DATA=online_retail.parquet
	@test -n '$(DATA)' || { echo 'bench-text: say where the data is, DATA=online_retail.parquet' >&2; exit 1; }
	@$(BIN)/python benchmarks/text_cold_items.py --data '$(DATA)'
	@$(BIN)/python benchmarks/modalities.py --data '$(DATA)'

bench-explain: setup  ## measure whether attributions find what matters: make bench-explain DATA=path/to/ml-1m
	@test -n '$(DATA)' || { echo 'bench-explain: say where the data is, DATA=path/to/ml-1m' >&2; exit 1; }
	@$(BIN)/python benchmarks/explanation.py --data '$(DATA)' $(if $(ENCODER),--encoder '$(ENCODER)')

bench-compression: setup  ## measure what smaller weights and vectors cost: make bench-compression DATA=path/to/ml-1m
	@test -n '$(DATA)' || { echo 'bench-compression: say where the data is, DATA=path/to/ml-1m' >&2; exit 1; }
	@$(BIN)/python benchmarks/compression.py --data '$(DATA)' $(if $(ENCODER),--encoder '$(ENCODER)')

bench-session: setup  ## measure the session embedding: one user, 100 users, feast serve under eight clients
	@$(BIN)/python benchmarks/session.py

bench-freshness: setup  ## measure whether freshness pays: make bench-freshness DATA=clicks.parquet ENCODER=artifact
	@test -n '$(DATA)' -a -n '$(ENCODER)' || { \
	    echo 'bench-freshness: say where clicks and encoder are, DATA=… ENCODER=… (benchmarks/globo.py)' >&2; exit 1; }
	@$(BIN)/python benchmarks/freshness_globo.py --data '$(DATA)' --encoder '$(ENCODER)'

bench-autoencoder: setup  ## measure autoencoders beside EASE on MovieLens-1M: make bench-autoencoder DATA=path/to/ml-1m
	@test -n '$(DATA)' || { echo 'bench-autoencoder: say where the data is, DATA=path/to/ml-1m' >&2; exit 1; }
	@$(BIN)/python benchmarks/autoencoder.py --data '$(DATA)'

bench-generator: setup  ## tell whether generated histories learn, copy or help: make bench-generator DATA=path/to/ml-1m
	@test -n '$(DATA)' || { echo 'bench-generator: say where the data is, DATA=path/to/ml-1m' >&2; exit 1; }
	@$(BIN)/python benchmarks/generator.py --data '$(DATA)'

bench-ranker: setup  ## measure what each encoder's features are worth to two rankers, on real purchases (minutes)
	@$(BIN)/python benchmarks/ranker.py

clean:  ## remove what tests, builds and the demo left behind (.venv stays)
	@rm -rf build dist *.egg-info .demo .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
