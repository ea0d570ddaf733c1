# Early refusals: what is missing skips the recipe when it is parsed, so the build
# ends before its first task, with the name of the variable and what to set.

def osctl_require(d, variable, advice):
    """Skip the recipe unless the variable has a value."""
    if not (d.getVar(variable) or "").strip():
        raise bb.parse.SkipRecipe("%s is not set: %s" % (variable, advice))

def osctl_require_files(d, variable):
    """Skip the recipe unless each file exists that the variable lists, by its full path."""
    for path in (d.getVar(variable) or "").split():
        if not path.startswith("/"):
            raise bb.parse.SkipRecipe("%s: %s is no full path" % (variable, path))
        # Parsed again when the file comes or goes.
        bb.parse.mark_dependency(d, path)
        if not os.path.isfile(path):
            raise bb.parse.SkipRecipe("%s: there is no file %s; set it to the path of one that exists" % (variable, path))
