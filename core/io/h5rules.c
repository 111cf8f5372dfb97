/* h5rules.c: the two profiles of files, own and foreign, in one table.
 *
 * A file that mascon wrote (superblock 3, no user block, root attribute format = "mascon") is held
 * to what mascon writes; other people's files may be any plain HDF5. What reaches outside the file
 * or has no end refuses both.
 */
#include "h5walk.h"

static const struct {
    unsigned char own, foreign;
    const char *text; /* of the object that breaks the rule */
} rules[MCI_RULES] = {
    [MCI_RULE_NONE] = {MCI_PASS, MCI_PASS, ""},
    [MCI_RULE_EXTENSION] = {MCI_REFUSE, MCI_PASS, "lies behind a superblock with an extension"},
    /* links and objects */
    [MCI_RULE_SOFT_LINK] = {MCI_REFUSE, MCI_SKIP, "is a soft link"},
    [MCI_RULE_EXTERNAL_LINK] = {MCI_REFUSE, MCI_REFUSE, "is a link into another file"},
    [MCI_RULE_LINK_KIND] = {MCI_REFUSE, MCI_REFUSE, "is a link of an unknown kind"},
    [MCI_RULE_OBJECT_KIND] = {MCI_REFUSE, MCI_SKIP, "is neither a group nor a dataset"},
    [MCI_RULE_GROUP_LINKS] = {MCI_REFUSE, MCI_REFUSE, "is a group with several links"},
    [MCI_RULE_DEPTH] = {MCI_REFUSE, MCI_REFUSE, "lies too deep"},
    /* attributes */
    [MCI_RULE_ATTR_COUNT] = {MCI_REFUSE, MCI_REFUSE, "has too many attributes"},
    [MCI_RULE_ATTR_VARIABLE] = {MCI_REFUSE, MCI_SKIP, "has an attribute of variable length"},
    [MCI_RULE_ATTR_SIZE] = {MCI_REFUSE, MCI_SKIP, "has a large attribute"},
    [MCI_RULE_ATTR_KIND] = {MCI_REFUSE, MCI_SKIP, "has an attribute of a strange kind"},
    /* datasets */
    [MCI_RULE_EXTERNAL_BYTES] = {MCI_REFUSE, MCI_REFUSE, "keeps its bytes in another file"},
    [MCI_RULE_FOREIGN_VIEW] = {MCI_REFUSE, MCI_REFUSE, "is a view of another file"},
    [MCI_RULE_VIEW_KIND] = {MCI_REFUSE, MCI_PROBLEM, "is a view of a strange kind"},
    [MCI_RULE_VIEW_SOURCE] = {MCI_PROBLEM, MCI_PROBLEM, "is a view without its sources"},
    [MCI_RULE_CHUNKED] = {MCI_REFUSE, MCI_PASS, "is stored in chunks"},
    [MCI_RULE_COMPACT] = {MCI_REFUSE, MCI_PASS, "is stored in its header"},
    [MCI_RULE_LATE] = {MCI_REFUSE, MCI_PASS, "has no bytes in the file"},
    [MCI_RULE_BIG_ENDIAN] = {MCI_REFUSE, MCI_PASS, "is big-endian"},
    [MCI_RULE_FILTER] = {MCI_REFUSE, MCI_PROBLEM, "cannot be decoded"},
    [MCI_RULE_TYPE] = {MCI_REFUSE, MCI_PROBLEM, "is of a strange type"},
    [MCI_RULE_SHAPE] = {MCI_REFUSE, MCI_PROBLEM, "has a strange shape"},
    [MCI_RULE_EXTENT] = {MCI_REFUSE, MCI_PROBLEM, "lies outside the file"},
    [MCI_RULE_DECODED] = {MCI_REFUSE, MCI_PROBLEM, "decodes to too much"},
};

int mci_h5_judge(mci_h5_walk *s, mci_h5_rule rule, const char *detail) {
    int verdict = s->own ? rules[rule].own : rules[rule].foreign;
    if (verdict != MCI_REFUSE) return verdict;
    const char *way_out =
        rules[rule].foreign == MCI_REFUSE
            ? ""
            : "; the file says that mascon wrote it, and mascon writes no such thing: remove the "
              "root attribute 'format' to read it as a plain HDF5 file";
    if (detail)
        mci_h5_core->fail(MC_EFORMAT, "'%s': %s%s", s->path, detail, way_out);
    else
        mci_h5_core->fail(MC_EFORMAT, "'%s' %s%s", s->path, rules[rule].text, way_out);
    return MCI_REFUSE;
}
