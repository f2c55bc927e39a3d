"""The model, three times: reference.py (the plain truth), embedded.py and tensorrt_llm.py (run by walk.py)."""
