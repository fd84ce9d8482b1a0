"""Failures that the user can fix, and text that is safe to show. Only the standard library is imported."""


class UserError(Exception):
    """A failure that the user can fix.

    The message is a single line: what was got, what was expected, and which flag, argument or command fixes it.
    """


def printable(text: object) -> str:
    """`text` on one line, safe for a terminal, a log or a table.

    Everything that is not a visible character is escaped, as in \\x1b or \\udcff: control characters, line breaks,
    marks that change the direction of writing, bytes that are not text.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out.

    torch has a class for that only where its own allocator on a GPU gives up. Elsewhere only the message tells; an
    "illegal memory access" does not count.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = (
        "out of memory",
        "allocate memory",
        "not enough memory",
        "could not create a memory object",
        "ALLOC_FAILED",
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
