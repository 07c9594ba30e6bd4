"""Save the address that messages go to as a block of the Prefect server, and print the block's id.

    python infra/prefect/webhook.py https://chat.example.org/hooks/abc

The message is JSON, ``{"text": "subject, newline, body"}``, as Slack, Mattermost and
others take it. Run it again to change the address: the block keeps its id.
"""

import sys

from prefect.blocks.notifications import CustomWebhookNotificationBlock

NAME = "squall-messages"


def main(url: str) -> None:
    """Save the block."""
    block = CustomWebhookNotificationBlock(
        name="Squall", url=url, json_data={"text": "{{subject}}\n{{body}}"}
    )
    print(block.save(NAME, overwrite=True))


if __name__ == "__main__":
    main(sys.argv[1])
