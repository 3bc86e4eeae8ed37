"""`python -m lit_ppo`."""

if __name__ == "__main__":  # Lightning's launchers import this file again
    from lit_ppo.deferred_dynamo import defer_dynamo

    defer_dynamo()

    from lit_ppo.cli import main

    main()
