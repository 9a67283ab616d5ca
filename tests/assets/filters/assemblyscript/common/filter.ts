// What the filters here share, on @solo-io/proxy-runtime. A filter exports "@solo-io/proxy-runtime/proxy" itself, because the
// compiler exports only what the first file does.
import { Context, FilterHeadersStatusValues, LogLevelValues, RootContext, log, stream_context } from "@solo-io/proxy-runtime";
import { BufferTypeValues, get_buffer_bytes } from "@solo-io/proxy-runtime/runtime";

// A configured use of a filter. The SDK's own onConfigure writes the size of the configuration to a wrong address, which
// traps without a configuration, so it is not called.
export class Plugin extends RootContext {
  configuration: ArrayBuffer = new ArrayBuffer(0);

  constructor(id: u32, public name: string) {
    super(id);
  }

  onConfigure(size: u32): bool {
    this.configuration = size > 0 ? get_buffer_bytes(BufferTypeValues.PluginConfiguration, 0, size) : new ArrayBuffer(0);
    this.log(LogLevelValues.info, "configuration: " + this.text());
    return true;
  }

  text(): string {
    return String.UTF8.decode(this.configuration);
  }

  log(level: LogLevelValues, text: string): void {
    log(level, this.name + ": " + text);
  }
}

// A request and its response.
export class Stream extends Context {
  plugin(): Plugin {
    return this.root_context as Plugin;
  }

  onResponseHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("x-filter", this.plugin().name);
    return FilterHeadersStatusValues.Continue;
  }
}
