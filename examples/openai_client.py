"""Send prompts to a running `trtllm-pt serve engines/demo-2` with the openai package.

Run `python examples/openai_client.py [BASE_URL]`.
"""

import sys

import openai


def main(base_url: str = "http://127.0.0.1:9000/v1") -> None:
    client = openai.OpenAI(base_url=base_url, api_key="none")  # the server does not check the key
    model = client.models.list().data[0].id
    done = client.completions.create(model=model, prompt="import os\n", max_tokens=16, temperature=0)
    print(f"{model}: {done.choices[0].text!r}")
    print(f"{done.usage.prompt_tokens} prompt tokens, {done.usage.completion_tokens} generated")

    for chunk in client.completions.create(model=model, prompt="def main(", max_tokens=32, temperature=0, stream=True):
        print(chunk.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
