"""Networks: generators by (C, H, W) and the papers' teachers and students."""
