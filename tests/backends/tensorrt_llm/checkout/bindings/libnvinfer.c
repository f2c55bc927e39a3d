/* The least that TensorRT's Python bindings want to find when they are imported: every factory returns NULL. Enums,
   classes and signatures can then be read on a machine without TensorRT; nothing can be built. */
#include <stddef.h>
#include <stdint.h>
#define RETURNS_NULL(name) \
    void* name(void)       \
    {                      \
        return NULL;       \
    }
RETURNS_NULL(createInferBuilder_INTERNAL)
RETURNS_NULL(createInferRefitter_INTERNAL)
RETURNS_NULL(createInferRuntime_INTERNAL)
RETURNS_NULL(createNvOnnxParserRefitter_INTERNAL)
RETURNS_NULL(createNvOnnxParser_INTERNAL)
RETURNS_NULL(getBuilderPluginRegistry)
RETURNS_NULL(getPluginRegistry)

int32_t getNvOnnxParserVersion(void)
{
    return 0;
}

int32_t getInferLibVersion(void)
{
    return 0;
}

int initLibNvInferPlugins(void)
{
    return 1;
}
