from slimrl.cli import main

main()
