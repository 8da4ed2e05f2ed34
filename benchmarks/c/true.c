// Ends at once, well: what the spawn benchmark starts. Static, so that no dynamic linker is measured.
int main(void) { return 0; }
