{
  # For installers that call node-gyp. CMakeLists.txt is the build; this only hands over to it.
  'targets': [
    {
      'target_name': 'varlen',
      'type': 'none',
      'actions': [
        {
          'action_name': 'cmake',
          'inputs': ['CMakeLists.txt', 'package.json', '<!@(node scripts/list-sources.cjs)'],
          'outputs': ['<(PRODUCT_DIR)/varlen.node'],
          'action': ['node', 'scripts/build-native.cjs', '<(CONFIGURATION_NAME)', '--out', '<(PRODUCT_DIR)'],
        },
      ],
    },
  ],
}
