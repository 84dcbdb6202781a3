"""How likely were these completions: one forward pass over whole sequences, with gradient.

The update needs the log-probability of every token that was sampled, under the policy as it is now; the KL term needs
the same under the base model. Prompts and completions of any lengths go in, one number per completion token comes out.

Left out, with reason: packing several sequences into one row. Sorted by length, as `parts` does it, 4 % of what is run
at 32 x 8 on tiny-gsm is padding (41 % if all were padded to the longest), and packing needs an attention that knows
where a sequence ends.
"""

import torch
from torch.utils.checkpoint import checkpoint

HEAD_NUMBERS = 2**26  # logits held at a time: 256 MB in float32


def completion_logprobs(model, prompts, completions, temperature=1.0):
    """Log-probability of every completion token, the end-of-sequence token included: the terms of equation (3) of the
    README. prompts, completions: lists of lists of token ids; returns [tokens], one completion after the other.

    Rows are padded on the right only: with causal attention no real token ever sees the padding, positions count
    from 0 by themselves, and the padding is never picked below, whatever its id.
    Of the [rows, length, vocabulary] logits there is never more than a piece: the head is applied to the tokens that
    count, some at a time, and once more for each piece on the way back, in float32 from the logits on.
    """
    ids = torch.zeros(len(prompts), max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)),
                      dtype=torch.long)
    picked = torch.zeros_like(ids, dtype=torch.bool)
    for row, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, :len(p) + len(c)] = torch.tensor(p + c)
        picked[row, len(p):len(p) + len(c)] = True
    ids, picked = ids.to(model.device), picked.to(model.device)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    hidden, targets = hidden[:, :-1][picked[:, 1:]], ids[picked]  # a token is predicted at the place before it
    head = model.get_output_embeddings()

    def chosen(hidden, targets):
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    size = max(1, HEAD_NUMBERS // head.weight.shape[0])
    if len(targets) <= size:
        return chosen(hidden, targets)
    return torch.cat([checkpoint(chosen, *piece, use_reentrant=False)
                      for piece in zip(hidden.split(size), targets.split(size), strict=True)])


@torch.no_grad()
def check_head(model):
    """Raise ValueError for a model whose logits are not its head's output alone (some are scaled, or capped)."""
    ids = torch.tensor([[1, 2]], device=model.device)
    try:
        plain = model.get_output_embeddings()(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
        same = torch.allclose(plain, model(input_ids=ids, use_cache=False).logits)
    except Exception as error:  # whatever an architecture of another kind stumbles over
        raise ValueError(f"this architecture is not served: {type(error).__name__}: {error}") from None
    if not same:
        raise ValueError("this model does something to its logits after its head, which the loss would not know")


def parts(lengths, budget):
    """Row numbers in groups of like length whose padded size stays within `budget` tokens (a row at least)."""
    groups = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and lengths[row] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
