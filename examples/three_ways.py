"""One fine-tuned model, heard through HEAR's functions, X-ARES' class and transformers' pipeline.

python examples/three_ways.py MODEL FILES...
"""

import argparse

import torch
from transformers import pipeline

import eat_audio as eat
from eat_audio.integrations import hear, xares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run's folder or a model folder")
    parser.add_argument("files", nargs="+", help="recordings")
    told = parser.parse_args()
    judge, encoder = hear.load_model(told.model), xares.EATAudioEncoder(told.model)
    tag = pipeline("audio-classification", model=told.model, device="cpu")
    for path in told.files:
        clip = eat.load_audio(path)
        scene = hear.get_scene_embeddings(clip[None], judge)
        vectors, times = hear.get_timestamp_embeddings(clip[None], judge)
        print(f"{path}: {len(clip) / 16_000:.2f} s")
        print(f"  HEAR      scene {tuple(scene.shape)}, frames {tuple(vectors.shape)}", end="")
        print(f" from {times[0, 0]:.0f} to {times[0, -1]:.0f} ms")
        with torch.inference_mode():
            print(f"  X-ARES    {tuple(encoder(clip).shape)}, {encoder.hop_size_in_ms} ms apart")
        answers = tag(clip.numpy(), top_k=3)
        print("  pipeline  " + ", ".join(f"{a['label']} {a['score']:.2f}" for a in answers))


if __name__ == "__main__":
    main()
