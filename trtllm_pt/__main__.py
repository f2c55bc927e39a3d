from trtllm_pt.cli import main

main()
