# `make demo` and `make test` work in a fresh clone: each builds .venv from the lock file first.
# The first of these that is Python 3.11 or 3.12 (a name may exist and still not run).
SUITS := -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))" 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p $(SUITS) && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DECODER := multimodal/builtin/decoder/model.safetensors
IMAGE_ENCODER := multimodal/builtin/image_encoder/encoder.safetensors
SPEECH_ENCODER := multimodal/builtin/speech_encoder/encoder.safetensors
DEMO_ADAPTER := runs/demo/adapter/adapter.safetensors

.PHONY: demo demo-asr demo-video test lint lock clean decoder image-encoder speech-encoder flickr8k benchmark benchmark-gpu
GRAFT_DATA ?= ../shared/data

# A demo that was interrupted goes on where it was; one that is done is evaluated again.
demo: $(STAMP) $(DECODER) $(IMAGE_ENCODER)
	$(RUN) -m scripts.demo --config scripts/configs/demo.yaml --resume $(ARGS)

# Built-in sentences need eSpeak NG, which is GPL: an extra that only the data generator calls.
demo-asr: $(STAMP) $(DECODER) $(SPEECH_ENCODER)
	$(RUN) -m scripts.demo_asr --config scripts/configs/demo_asr.yaml --resume $(ARGS)

demo-video: $(STAMP) $(DEMO_ADAPTER)
	$(RUN) -m scripts.demo_video --config scripts/configs/demo_video.yaml --resume $(ARGS)

# The image adapter that the video layers begin as.
$(DEMO_ADAPTER):
	$(MAKE) demo ARGS=

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

$(STAMP): requirements.lock pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --quiet --python $(RUN) -r requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-deps -e .
	touch $@

# The weights that come with Graft, built anew where they are missing: about two and a half hours on two cores.
decoder: $(DECODER)
image-encoder: $(IMAGE_ENCODER)
speech-encoder: $(SPEECH_ENCODER)

$(DECODER): | $(STAMP)
	$(RUN) -m scripts.pretrain_decoder --config scripts/configs/decoder.yaml --text $(GRAFT_DATA)/text/children_books.txt.xz --run-dir runs/decoder --resume
	mkdir -p $(@D) && cp runs/decoder/decoder/* $(@D)

$(IMAGE_ENCODER): | $(STAMP) $(DECODER)
	$(RUN) -m scripts.pretrain_image_encoder --config scripts/configs/image_encoder.yaml --run-dir runs/image_encoder --resume
	mkdir -p $(@D) && cp runs/image_encoder/encoder/* $(@D)

$(SPEECH_ENCODER): | $(STAMP)
	$(RUN) -m scripts.pretrain_speech_encoder --config scripts/configs/spoken_encoder.yaml --run-dir runs/speech_encoder --resume
	mkdir -p $(@D) && cp runs/speech_encoder/encoder/* $(@D)

# Flickr8k from scratch, the test split touched once at the end.
FLICKR := $(GRAFT_DATA)/flickr8k
flickr8k: $(STAMP) $(DECODER)
	$(RUN) -m scripts.pretrain_decoder --config scripts/configs/flickr8k_decoder.yaml --text $(GRAFT_DATA)/text/children_books.txt.xz --captions $(FLICKR) --run-dir runs/flickr8k/decoder --resume
	$(RUN) -m scripts.pretrain_image_encoder --config scripts/configs/flickr8k_encoder.yaml --data.source $(FLICKR) --run-dir runs/flickr8k/encoder --resume
	$(RUN) -m scripts.train_captioning --config scripts/configs/flickr8k.yaml --data.source $(FLICKR) --decoder runs/flickr8k/decoder/decoder --encoder.weights runs/flickr8k/encoder/encoder --run-dir runs/flickr8k/captioning --resume
	$(RUN) -m scripts.evaluate --adapter runs/flickr8k/captioning/adapter --source $(FLICKR) --split test --run-dir runs/flickr8k/test

# Measured side by side with what people would use instead; on idle cores, or the numbers mean little.
benchmark: $(STAMP)
	$(RUN) -m scripts.benchmark --suite all --size cpu $(ARGS)

benchmark-gpu: $(STAMP)
	$(RUN) -m scripts.benchmark --suite all --size 8b --device cuda --run-dir runs/benchmark-gpu $(ARGS)

# After a change of dependencies in pyproject.toml. No index addresses in the file.
lock: $(STAMP)
	$(VENV)/bin/uv pip compile --universal --python-version 3.11 --extra dev --no-emit-index-url --no-annotate --no-header --upgrade pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
