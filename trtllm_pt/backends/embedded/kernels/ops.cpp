// All ops that are compiled once, as one translation unit: torch's headers take about 12 seconds of processor time in
// every translation unit that includes them. Names in anonymous namespaces must therefore differ between these files.
#include "attention.cpp"
#include "bindings.cpp"
#include "collective.cpp"
#include "experts.cpp"
#include "heartbeat.cpp"
#include "isa.cpp"
#include "linear.cpp"
#include "multiply.cpp"
#include "norm.cpp"
#include "scores.cpp"
